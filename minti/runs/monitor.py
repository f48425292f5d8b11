"""A training run with a validation loss, the best checkpoint and early stopping.

for state in monitored(textual_inversion(wrapper, images)): ...
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minti.runs.distributed import add_up, rank, world_size
from minti.textual_inversion import Batch, TrainingImages
from minti.training import Trainer, TrainingError
from minti.utils import randn

STEP_COST = 2.5  # of a training step, forward and backward through the frozen UNet, in forward passes


class ValidationSet:
    """Images, timesteps and noise that stay the same, so that their loss shows what has been learned, nothing else.

    With everything fixed, the loss is a smooth curve ("Is This Loss Informative?", arXiv 2302.04841). The timesteps are
    spread evenly over the schedule, the images evenly over all there are.
    """

    def __init__(self, data: TrainingImages, size: int, generator: torch.Generator):
        self.data = data
        device, total = data.mean.device, data.num_train_timesteps
        # Fewer images than places: each several times; more: every so many-th.
        self.indices = torch.randperm(size, generator=generator) * max(size, len(data)) // size % len(data)
        self.latents = data.latents(self.indices, generator)
        self.timesteps = ((torch.arange(size, device=device) + 0.5) * total / size).long()
        self.noise = randn(self.latents.shape, generator, device, self.latents.dtype)

    def __len__(self) -> int:
        return len(self.latents)

    def batches(self, prompts: Sequence[str], size: int) -> Iterator[tuple[slice, Batch]]:
        """Batches of that size, each with its place in the set; prompts are assigned round-robin. Of several processes
        each gets its share."""
        for i in range(rank() * size, len(self), world_size() * size):
            part = slice(i, i + size)
            indices, fixed = self.indices[part], (self.latents[part], self.noise[part], self.timesteps[part])
            chosen = self.data.prompts_for(indices, prompts, range(len(self))[part])
            batch = Batch(*fixed, chosen, indices.tolist())
            yield part, self.data.with_masks(batch) if hasattr(self.data, "with_masks") else batch

    @torch.no_grad()
    def mean(self, loss: Callable[[Batch], Tensor], prompts: Sequence[str], size: int) -> float:
        """The mean of a loss over the set, of all processes together."""
        total = torch.zeros((), device=self.latents.device)
        for _, batch in self.batches(prompts, size):
            total += loss(batch) * len(batch.latents)
        return add_up(total).item() / len(self)


def evaluation_interval(size: int, batch_size: int, share: float = 0.05) -> int:
    """Every how many training steps a validation set of that size may be evaluated, to take that share of the time."""
    return math.ceil(size / (share * batch_size * STEP_COST))


def has_levelled_off(
    losses: Sequence[float], window: int = 10, variance: float = 0.02, patience: int = 4, gain: float = 0.05
) -> bool:
    """Early stopping: whether the validation loss has stopped falling; one of two conditions is enough.

    1. It hardly varies any more: Var(last `window` losses) < `variance` * Var(all losses), DVAR (arXiv 2302.04841,
       section 4), right for curves that fall slowly. A curve that falls within an evaluation or two and then only
       jitters never fulfils it, because nearly all its losses are jitter.
    2. It hardly gets better any more: the best of the last `patience` losses is better than the best before by less
       than `gain` times the whole fall so far.
    """
    if len(losses) < patience + 2:
        return False
    hardly_varies = len(losses) >= window + 2 and np.var(losses[-window:]) < variance * np.var(losses)
    gained, fallen = min(losses[:-patience]) - min(losses[-patience:]), losses[0] - min(losses)
    return bool(hardly_varies or gained < gain * fallen)


@dataclass(frozen=True)
class TrainingState:
    """A monitored training step.

    Attributes:
        step, finished: counts from 1; whether this is the last.
        loss, learning_rate: of this step; a single loss mostly shows which timesteps were drawn.
        gradient_norm: before clipping; NaN where float16's gradient scaler has skipped the step.
        row_norm: mean length of the new embedding vectors; NaN where none are learned. A vector far longer than the
            vocabulary's (`wrapper.vocabulary_norm`) stops obeying the rest of the prompt.
        validation_loss: None where it was not computed.
        initializer_loss, empty_loss: the validation loss before the first step, and with the empty prompt.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    row_norm: float
    validation_loss: float | None
    initializer_loss: float
    empty_loss: float
    finished: bool


class Monitor:
    """Goes round a trainer: `for state in Monitor(trainer, ...)` takes its steps. Every so often the mean loss over a
    validation set is evaluated, which takes a twentieth of the time.

    Args:
        prompts, size: the validation prompts; images in a batch.
        stop: whether to end the run where the validation loss has levelled off.
        loss: of the model and a batch of the validation set.
        track_best: whether to keep the best values; a whole network is better not kept three times.

    Attributes:
        losses, empty_loss: the validation loss, before the first step and of every evaluation; with the empty prompt.
        best, best_step: the adapter's values where it was lowest, and after how many steps that was.
        last: the last step's values, once the best were restored.
    """

    def __init__(
        self,
        trainer: Trainer,
        validation: ValidationSet,
        prompts: Sequence[str],
        size: int,
        loss: Callable[[Any, Batch], Tensor],
        stop: bool = False,
        track_best: bool = True,
    ):
        self.trainer, self.validation, self.prompts, self.size, self.stop = trainer, validation, prompts, size, stop
        self.loss, self.track_best = lambda batch: loss(trainer.model, batch), track_best
        self.interval = evaluation_interval(len(validation), size * trainer.accumulation * trainer.group.size)
        self.last: dict[str, Tensor] | None = None
        self.restored_at = -1
        self.best_step, self.first = 0, self.values() if track_best else {}
        self.best = self.first
        trainer.monitor = self
        if trainer.checkpoint is not None:
            trainer.checkpoint.restore_monitor(self)
        else:
            self.empty_loss, self.losses = self.evaluate([""]), [self.evaluate(prompts)]

    def __iter__(self) -> Iterator[TrainingState]:
        """Takes steps; in the end, and where the caller leaves the loop, the best values are restored.
        Raises TrainingError: see `runs.checks.step` and `check_values`; the validation loss is not finite."""
        trainer = self.trainer
        if self.restored and not self.finished:  # after a break; with the values of the last step, not the best
            trainer.adapter.load_state_dict(self.last)
        try:
            while not self.finished:
                step, validation_loss = next(trainer), None
                if self.track_best:
                    check_values(trainer, self.first)
                if step.step % self.interval == 0 or step.step == trainer.steps:
                    validation_loss = self.evaluate(self.prompts)
                    if not math.isfinite(validation_loss):
                        lower = f"try a lower learning rate (it is {trainer.optimizer.param_groups[0]['initial_lr']:g})"
                        raise TrainingError(f"the validation loss is {validation_loss} after step {step.step}; {lower}")
                    if self.track_best and validation_loss < min(self.losses):
                        self.best, self.best_step = self.values(), step.step
                    self.losses.append(validation_loss)
                before = {"initializer_loss": self.losses[0], "empty_loss": self.empty_loss}
                yield TrainingState(*step, self.row_norm(), validation_loss, **before, finished=self.finished)
        finally:
            if self.track_best:
                self.restore_best()

    @property
    def restored(self) -> bool:
        """Whether no step was taken since the best values were restored: the `last` ones are those to go on with."""
        return self.restored_at == self.trainer.number

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        ended = self.trainer.number >= self.trainer.steps
        return ended or (self.stop and has_levelled_off(self.losses))

    def evaluate(self, prompts: Sequence[str]) -> float:
        """The validation loss of the adapter as it is."""
        with self.trainer.adapter.attached(self.trainer.model):
            return self.validation.mean(self.loss, prompts, self.size)

    def row_norm(self) -> float:
        """The mean length of a word's embedding vectors; NaN without a word."""
        state = self.trainer.adapter.state_dict().items()
        lengths = [value.norm(dim=1) for name, value in state if name.endswith("values")]
        return torch.cat(lengths).mean().item() if lengths else math.nan

    def values(self) -> dict[str, Tensor]:
        """A copy of the adapter's values."""
        return {name: value.detach().clone() for name, value in self.trainer.adapter.state_dict().items()}

    def restore_best(self) -> None:
        """Goes back to the best values, if the run was long enough to be judged, or has spoilt them."""
        trainer, last = self.trainer, self.values()
        learned_by = trainer.model.learning.get(trainer.training.subject)
        own = (trainer.adapter, *getattr(trainer.adapter, "adapters", ()))  # of several words that learn together
        if trainer.training.trainer is not trainer or learned_by not in own:
            return  # a newer run of the word is left alone, and so is a model without it
        if self.restored:
            return
        self.last, self.restored_at = last, trainer.number
        if len(self.losses) > 1 or not all(value.isfinite().all() for value in last.values()):
            trainer.adapter.load_state_dict(self.best)
            trainer.adapter.after_step(trainer.model)


def check_values(trainer: Trainer, first: dict[str, Tensor]) -> None:
    """Raises TrainingError: the values are not finite after a step, or have not moved in the first five."""
    name, taken = trainer.adapter.name, trainer.number - trainer.skipped
    values, rate = trainer.adapter.state_dict(), trainer.optimizer.param_groups[0]["initial_lr"]
    if not all(value.isfinite().all() for value in values.values()):
        raise TrainingError(f"{name} is not finite after {taken} steps; try a lower learning rate (it is {rate:g})")
    if taken == 5 and all(torch.equal(value, first[key]) for key, value in values.items()):
        raise TrainingError(f"after 5 steps {name} has not moved; try a higher learning rate (it is {rate:g})")


def monitored(trainer: Trainer, stop: bool | None = None) -> Monitor:
    """A run of `minti.textual_inversion` with a validation loss, the best values and early stopping.

    `stop`: whether to stop by itself; None: where the config leaves `steps` open. Iterating gives a `TrainingState` for
    every step; in the end, or after a break, the model has the word's best vectors.
    """
    training, data = trainer.training, trainer.data
    size, seed = training.batch_size, training.config.seed
    images = max(8, 2 * size * training.config.gradient_accumulation)  # of two steps
    validation = ValidationSet(data, images, torch.Generator().manual_seed(seed + 1))
    stop = training.config.steps is None if stop is None else stop
    return Monitor(trainer, validation, training.prompts, size, trainer.loss, stop)
