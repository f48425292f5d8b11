"""Does the word get better, and is it learned? The loss over a fixed set, the best rows so far, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minti.learning.loss import diffusion_loss
from minti.learning.pictures import Concept
from minti.learning.settings import TrainingWrapper
from minti.machine.noise import randn
from minti.machine.processes import add_up, rank, world_size

# A training step goes forward and backward through the frozen UNet: about as long as this many forward passes.
STEP_COST = 2.5


class TrainingError(RuntimeError):
    """Training would go on but learn nothing."""


@dataclass(frozen=True)
class TrainingState:
    """What the loop shows after each optimizer step.

    Attributes:
        step: counts from 1.
        loss: of this step; mostly shows which timesteps were drawn.
        learning_rate: of this step.
        gradient_norm: of the new rows, before clipping; NaN where float16 has lost the step.
        row_norm: mean length of the new rows. A vector far longer than any word's (`wrapper.vocabulary_norm`) stops
            obeying the rest of the prompt.
        fixed_loss: the loss over a fixed set of pictures, timesteps and noise; None where it was not computed.
        initializer_loss, empty_loss: the same for the initializer word and for the empty prompt.
        finished: whether this is the last step.
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


class FixedSet:
    """Pictures, timesteps and noise that stay the same, so that their loss shows the word and nothing else.

    "Is This Loss Informative?" (arXiv 2302.04841): with everything fixed, the loss is a smooth curve. The timesteps are
    spread evenly over the schedule, the pictures evenly over all there are.
    """

    def __init__(self, wrapper: TrainingWrapper, concept: Concept, size: int, generator: torch.Generator):
        self.wrapper = wrapper
        device, total = concept.mean.device, wrapper.scheduler.config.num_train_timesteps
        # Fewer pictures than places: each several times; more: every so many-th.
        spread = torch.randperm(size, generator=generator) * max(size, len(concept)) // size
        self.latents = concept.draw(spread % len(concept), generator)
        self.timesteps = ((torch.arange(size, device=device) + 0.5) * total / size).long()
        self.noise = randn(self.latents.shape, generator, device, self.latents.dtype)

    def each(self, prompts: Sequence[str], batch_size: int) -> Iterator[tuple[slice, Tensor]]:
        """The losses of so many pictures at a time, with their place in the set; several processes share the work.

        The set's first picture goes with the first prompt, and so on; after the last prompt comes the first again.
        """
        size = len(self.latents)
        for i in range(rank() * batch_size, size, world_size() * batch_size):
            part = slice(i, i + batch_size)
            context = self.wrapper.model.encode_prompt([prompts[j % len(prompts)] for j in range(size)[part]])
            loss = diffusion_loss(self.wrapper, self.latents[part], self.timesteps[part], context, self.noise[part])
            yield part, loss

    @torch.no_grad()
    def loss(self, prompts: Sequence[str]) -> float:
        """The mean loss over the set."""
        total = torch.zeros((), device=self.latents.device)
        for part, loss in self.each(prompts, self.wrapper.batch_size):
            total += loss * len(self.latents[part])
        return add_up(total).item() / len(self.latents)


def evaluation_interval(size: int, batch_size: int, share: float = 0.05) -> int:
    """Every how many training steps a fixed set may be evaluated.

    Args:
        size: how many pictures an evaluation puts through the UNet.
        batch_size: how many pictures a training step puts through it.
        share: of the run's time that evaluations may take.
    """
    return math.ceil(size / (share * batch_size * STEP_COST))


def has_levelled_off(
    losses: Sequence[float], window: int = 10, variance: float = 0.02, patience: int = 4, gain: float = 0.05
) -> bool:
    """Whether the curve of the fixed loss has come to its end. It has if one of two things is true of it.

    1. It hardly varies any more: Var(last `window` losses) < `variance` * Var(all losses). This is DVAR ("Is This Loss
       Informative?", arXiv 2302.04841, section 4), and right for curves that fall slowly. A curve that falls within an
       evaluation or two and then only jitters never fulfils it, because nearly all its losses are jitter.
    2. It hardly gets better any more: the best of the last `patience` losses is better than the best before by less
       than `gain` times the whole fall so far.
    """
    if len(losses) < patience + 2:
        return False
    hardly_varies = len(losses) >= window + 2 and np.var(losses[-window:]) < variance * np.var(losses)
    gained, fallen = min(losses[:-patience]) - min(losses[-patience:]), losses[0] - min(losses)
    return bool(hardly_varies or gained < gain * fallen)


class Progress:
    """Follows a run: evaluates the fixed loss every so often, and remembers the rows where it was lowest.

    Attributes:
        losses: the fixed loss, of the initializer word first, then of every evaluation.
        best_rows, best_step: (k, d), where it was lowest, and after how many steps that was.
        finished: whether the run has come to its end.
    """

    def __init__(self, wrapper: TrainingWrapper, concept: Concept, generator: torch.Generator):
        self.wrapper, self.config, self.rows = wrapper, wrapper.config, wrapper.rows
        size = max(8, 2 * wrapper.batch_size)
        self.fixed = FixedSet(wrapper, concept, size, generator)
        per_step = wrapper.batch_size * self.config.gradient_accumulation * world_size()
        self.interval = evaluation_interval(size, per_step)
        self.empty_loss, self.losses = self.fixed.loss([""]), [self.fixed.loss(wrapper.prompts)]
        self.first_rows = self.best_rows = self.rows.values.detach().clone()
        self.best_step, self.finished = 0, False

    def look(self, step: int, loss: float, learning_rate: float, gradient_norm: float) -> TrainingState:
        """After each step: evaluates the fixed loss if it is due; sets `best_rows` and `finished`."""
        self.finished = step == self.config.last_step
        fixed_loss = None
        if step % self.interval == 0 or self.finished:
            fixed_loss = self.fixed.loss(self.wrapper.prompts)
            if fixed_loss < min(self.losses):
                self.best_rows, self.best_step = self.rows.values.detach().clone(), step
            self.losses.append(fixed_loss)
            self.finished = self.finished or self._levelled_off()
        return TrainingState(
            step=step,
            loss=loss,
            learning_rate=learning_rate,
            gradient_norm=gradient_norm,
            row_norm=self.rows.values.detach().norm(dim=1).mean().item(),
            fixed_loss=fixed_loss,
            initializer_loss=self.losses[0],
            empty_loss=self.empty_loss,
            finished=self.finished,
        )

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What changes, as tensors and as what JSON can hold."""
        facts = {"losses": self.losses, "empty_loss": self.empty_loss, "best_step": self.best_step}
        return {"best_rows": self.best_rows}, facts

    def load_state_dict(self, tensors: dict[str, Tensor], facts: dict[str, Any], step: int) -> None:
        """Takes what `state_dict` gave after `step` steps."""
        self.best_rows = tensors["best_rows"].to(self.rows.values.device)
        self.losses, self.empty_loss, self.best_step = list(facts["losses"]), facts["empty_loss"], facts["best_step"]
        self.finished = step >= self.config.last_step or self._levelled_off()

    def _levelled_off(self) -> bool:
        return self.config.steps is None and has_levelled_off(self.losses)

    def check_rows(self, steps: int) -> None:
        """Fails where `steps` steps have spoilt the rows, or left them as they were.

        Raises:
            TrainingError: they are not finite, or have not moved in five steps.
        """
        if not self.rows.values.isfinite().all():
            raise TrainingError(f"the rows are not finite after {steps} steps; try a lower learning rate")
        if steps == 5 and torch.equal(self.rows.values, self.first_rows):
            raise TrainingError(f"after {steps} steps the rows of {self.config.placeholder_token} have not moved")

    def keep_best(self) -> None:
        """Goes back to the best rows, if the run was long enough to be judged, or has spoilt them."""
        if len(self.losses) > 1 or not self.rows.values.isfinite().all():
            self.rows.write(self.best_rows)
