"""The loop: a part beside a frozen model goes down the gradient of a loss. It knows no words and no pictures.

What learns is the `part`, what it learns from comes from `draw`. What watches goes round it (`watching`).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minti.learning.checks import check_step
from minti.machine.processes import add_up, rank, world_size
from minti.model import StableDiffusion
from minti.parts.part import Part


class Step(NamedTuple):
    """A step's mean loss, its learning rate, and the gradient's norm before clipping (NaN: float16 has lost it)."""

    loss: float
    learning_rate: float
    gradient_norm: float


@dataclass
class Loop:
    """Iterating takes steps, up to `steps` in all, and yields after each; only meanwhile is the part inside the model.

    Attributes:
        draw, loss: a batch, with all that is random in a step; and what is to fall, of model and batch, () float32.
        rate: what the learning rate is multiplied by, of the steps taken so far.
        accumulation: batches per step, and per process where several share the work.
        max_norm: a longer gradient is cut back to this length.
        number, taken: of the step that is under way or was the last, from 1; how many of them were not lost.
    """

    model: StableDiffusion
    part: Part
    draw: Callable[[torch.Generator], Any]
    loss: Callable[[StableDiffusion, Any], Tensor]
    optimizer: torch.optim.Optimizer
    steps: int
    generator: torch.Generator
    rate: Callable[[int], float] = lambda taken: 1.0
    accumulation: int = 1
    max_norm: float | None = None
    number: int = field(default=0, init=False)
    taken: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        # In float16 small gradients would vanish, and the loss is scaled up (`003`, 28); otherwise this does nothing.
        self.scaler = torch.amp.GradScaler(self.model.device.type, enabled=self.model.dtype == torch.float16)
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def __iter__(self) -> Iterator[Step]:
        while self.number < self.steps:
            self.number += 1
            with self.part.inside(self.model):
                step = self.step()
            yield step

    def step(self) -> Step:
        """Forward and backward for every batch; clip; a step of the optimizer."""
        batches = [self.draw(self.generator) for _ in range(self.accumulation * world_size())]
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.backward(batches)
        self.scaler.unscale_(self.optimizer)
        norm = clip(self.part.gradients(), self.max_norm)
        check_step(self.model, f"step {self.number} of {self.part.name}", loss, norm, batches, self.scaler)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.rate(self.taken)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        lost = self.scaler.get_scale() < scale  # a gradient has overflowed, and nothing has moved
        self.taken += not lost
        return Step(loss, self.optimizer.param_groups[0]["lr"], math.nan if lost else norm)

    def backward(self, batches: list[Any]) -> float:
        """Adds up the gradients of all batches, of which every process does its share; the mean loss."""
        total = torch.zeros((), device=self.model.device)
        for batch in batches[rank() :: world_size()]:
            loss = self.loss(self.model, batch)
            self.scaler.scale(loss / len(batches)).backward()
            total += loss.detach()
        for gradient in self.part.gradients():
            add_up(gradient)
        return add_up(total).item() / len(batches)


def clip(gradients: list[Tensor], max_norm: float | None) -> float:
    """Multiplies gradients in place so that together they are at most so long; how long they were."""
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item() if gradients else 0.0
    if max_norm is not None and norm > max_norm:
        for gradient in gradients:
            gradient.mul_(max_norm / norm)
    return norm
