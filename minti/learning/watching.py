"""What watches a run: a loss that shows whether it gets better, the best values so far, and when to stop."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from minti.learning.checks import check_values, is_finite
from minti.learning.loop import Loop
from minti.learning.pictures import Batch, Concept
from minti.machine.noise import randn
from minti.machine.processes import add_up, rank, world_size
from minti.model import StableDiffusion
from minti.templates import said_of

STEP_COST = 2.5  # of a training step, forward and backward through the frozen UNet, in forward passes


class FixedSet:
    """Pictures, timesteps and noise that stay the same, so that their loss shows what has been learned, nothing else.

    With everything fixed, the loss is a smooth curve ("Is This Loss Informative?", arXiv 2302.04841). The timesteps are
    spread evenly over the schedule, the pictures evenly over all there are.
    """

    def __init__(self, concept: Concept, size: int, generator: torch.Generator):
        self.concept = concept
        device, total = concept.mean.device, concept.num_train_timesteps
        # Fewer pictures than places: each several times; more: every so many-th.
        self.numbers = torch.randperm(size, generator=generator) * max(size, len(concept)) // size % len(concept)
        self.latents = concept.latents(self.numbers, generator)
        self.timesteps = ((torch.arange(size, device=device) + 0.5) * total / size).long()
        self.noise = randn(self.latents.shape, generator, device, self.latents.dtype)

    def __len__(self) -> int:
        return len(self.latents)

    def batches(self, prompts: Sequence[str], size: int) -> Iterator[tuple[slice, Batch]]:
        """So many pictures at a time, with their place in the set; of several processes each gets its share. The set's
        first picture goes with the first prompt, and so on; after the last prompt comes the first again."""
        for i in range(rank() * size, len(self), world_size() * size):
            part = slice(i, i + size)
            numbers, seen = self.numbers[part], (self.latents[part], self.noise[part], self.timesteps[part])
            said = said_of(numbers, prompts, range(len(self))[part])
            masks = None if self.concept.masks is None else self.concept.masks[numbers]
            yield part, Batch(*seen, said, numbers.tolist(), masks)

    @torch.no_grad()
    def mean(self, loss: Callable[[Batch], Tensor], prompts: Sequence[str], size: int) -> float:
        """The mean of a loss over the set, of all processes together."""
        total = torch.zeros((), device=self.latents.device)
        for _, batch in self.batches(prompts, size):
            total += loss(batch) * len(batch.latents)
        return add_up(total).item() / len(self)


def evaluation_interval(size: int, batch_size: int, share: float = 0.05) -> int:
    """Every how many training steps a fixed set of that size may be evaluated, to take that share of the run's time."""
    return math.ceil(size / (share * batch_size * STEP_COST))


def has_levelled_off(
    losses: Sequence[float], window: int = 10, variance: float = 0.02, patience: int = 4, gain: float = 0.05
) -> bool:
    """Whether the fixed loss has stopped falling; one of two conditions is enough.

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
    """What the loop shows after each optimizer step.

    Attributes:
        step, finished: counts from 1; whether this is the last.
        loss, learning_rate: of this step; a single loss mostly shows which timesteps were drawn.
        gradient_norm: before clipping; NaN where float16 has lost the step.
        row_norm: mean length of the new rows; NaN where none are learned. A vector far longer than any word's
            (`wrapper.vocabulary_norm`) stops obeying the rest of the prompt.
        fixed_loss: the loss over a `FixedSet`; None where it was not computed.
        initializer_loss, empty_loss: the same for the initializer word and for the empty prompt.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    row_norm: float
    fixed_loss: float | None
    initializer_loss: float
    empty_loss: float
    finished: bool


class Watched:
    """A loop and what watches it: `for state in Watched(loop, ...)` takes the loop's steps. Every so often the mean of
    the loop's loss over a fixed set is evaluated, which takes a twentieth of the time.

    Args:
        prompts, size: what to say of the set's pictures; how many are in a batch, the set's and the loop's.
        may_stop: whether to end the run where the fixed loss has levelled off.
        loss: of the fixed set; the loop's own when absent.
        keeps: whether to keep the best values; a whole network is better not kept three times.

    Attributes:
        losses, empty_loss: the fixed loss, before the first step and of every evaluation; with the empty prompt.
        best, best_step: the part's values where it was lowest, and after how many steps that was.
        last: those of the last step, once `keep_best` has put the best in their place.
        number: of the last step that was taken and looked at; the loop's own is ahead within a step.
    """

    def __init__(
        self,
        loop: Loop,
        fixed: FixedSet,
        prompts: Sequence[str],
        size: int,
        may_stop: bool = False,
        loss: Callable[[StableDiffusion, Batch], Tensor] | None = None,
        keeps: bool = True,
    ):
        self.loop, self.fixed, self.prompts, self.size, self.may_stop = loop, fixed, prompts, size, may_stop
        self.loss, self.keeps = partial(loss or loop.loss, loop.model), keeps
        self.interval = evaluation_interval(len(fixed), size * loop.accumulation * world_size())
        self.empty_loss, self.losses = self.evaluate([""]), [self.evaluate(prompts)]
        self.first = self.best = self.values() if keeps else {}
        self.last: dict[str, Tensor] | None = None
        self.best_step = self.number = 0

    def __iter__(self) -> Iterator[TrainingState]:
        """Takes steps. Raises TrainingError: see `checks`."""
        steps = iter(self.loop)
        while not self.finished:
            step, fixed_loss = next(steps), None
            if self.keeps:
                check_values(self.loop.part.name, self.loop.taken, self.loop.part.state_dict(), self.first)
            if self.loop.number % self.interval == 0 or self.loop.number == self.loop.steps:
                fixed_loss = self.evaluate(self.prompts)
                if self.keeps and fixed_loss < min(self.losses):
                    self.best, self.best_step = self.values(), self.loop.number
                self.losses.append(fixed_loss)
            self.number = self.loop.number
            before = {"initializer_loss": self.losses[0], "empty_loss": self.empty_loss}
            yield TrainingState(self.number, *step, self.row_norm(), fixed_loss, **before, finished=self.finished)

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return self.number >= self.loop.steps or (self.may_stop and has_levelled_off(self.losses))

    def evaluate(self, prompts: Sequence[str]) -> float:
        """The fixed loss of the part as it is."""
        with self.loop.part.inside(self.loop.model):
            return self.fixed.mean(self.loss, prompts, self.size)

    def row_norm(self) -> float:
        """The mean length of a word's rows; NaN without a word."""
        state = self.loop.part.state_dict().items()
        lengths = [value.norm(dim=1) for name, value in state if name.endswith("values")]
        return torch.cat(lengths).mean().item() if lengths else math.nan

    def values(self) -> dict[str, Tensor]:
        """A copy of what the part holds."""
        return {name: value.detach().clone() for name, value in self.loop.part.state_dict().items()}

    def keep_best(self) -> None:
        """Goes back to the best values, if the run was long enough to be judged, or has spoilt them."""
        self.last = self.values()
        if len(self.losses) > 1 or not is_finite(self.last):
            self.loop.part.load_state_dict(self.best)
            self.loop.part.settle(self.loop.model)
