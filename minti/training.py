"""The training loop: an adapter of a frozen model goes down the gradient of a loss. It knows no words and no images:
`draw(generator)` gives a batch with all its randomness, `loss(model, batch)` a scalar."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minti.adapter import Adapter
from minti.utils import check, plugin


class TrainingError(RuntimeError):
    """Training would go on but learn nothing."""


class Step(NamedTuple):
    """A training step: its number from 1, mean loss, learning rate, gradient norm before clipping (NaN: skipped)."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float


class OneProcess:
    """The group of processes that share a step: this one alone. `minti.runs.distributed` has a larger one."""

    rank, size, sum = 0, 1, staticmethod(lambda tensor: tensor)


@dataclass
class Trainer:
    """An iterator of optimizer steps; the adapter is attached to the model during a step only.

    rate: factor of the learning rate, given the number of steps taken. accumulation: batches per step and process.
    max_norm: the gradient is clipped to this norm; None: it is not. group: the processes that share the work.
    number: of the step under way, or of the last one. completed: of the last one that ended without an error.
    skipped: how many optimizer steps float16's gradient scaler has skipped.
    """

    model: Any
    adapter: Adapter
    draw: Callable[[torch.Generator], Any]
    loss: Callable[[Any, Any], Tensor]
    optimizer: torch.optim.Optimizer
    steps: int
    generator: torch.Generator
    rate: Callable[[int], float] = lambda taken: 1.0
    accumulation: int = 1
    max_norm: float | None = None
    group: Any = field(default_factory=lambda: plugin("minti.runs.distributed:Processes", OneProcess)())
    number = completed = skipped = 0
    training = data = monitor = checkpoint = None  # for `minti.runs`: wrapper, images; what goes round this run

    def __post_init__(self) -> None:
        # float16: small gradients would vanish, so the loss is scaled up (`003`, 28). Elsewhere this does nothing.
        self.scaler = torch.amp.GradScaler(self.model.device.type, enabled=self.model.dtype == torch.float16)
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def __iter__(self) -> "Trainer":
        return self

    def __next__(self) -> Step:
        if self.number >= self.steps:
            raise StopIteration
        self.number = self.completed + 1  # a step that an error has ended is taken anew
        with self.adapter.attached(self.model):
            step = self.step()
        self.completed = self.number
        return step

    def step(self) -> Step:
        """Draw, forward and backward for every batch; clip; a step of the optimizer."""
        batches = [self.draw(self.generator) for _ in range(self.accumulation * self.group.size)]
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.model.device)
        for batch in batches[self.group.rank :: self.group.size]:
            loss = self.loss(self.model, batch)
            self.scaler.scale(loss / len(batches)).backward()
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        gradients = [self.group.sum(gradient) for gradient in self.adapter.gradients()]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item() if gradients else 0.0
        mean = self.group.sum(total).item() / len(batches)
        check("runs.checks:step", self, mean, norm, batches)
        if self.max_norm is not None and norm > self.max_norm:
            for gradient in gradients:
                gradient.mul_(self.max_norm / norm)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.rate(self.number - 1 - self.skipped)
        self.adapter.before_step(self.model, self.optimizer)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() < scale:  # float16 has overflowed, and nothing has moved
            self.skipped, norm = self.skipped + 1, math.nan
        else:
            self.adapter.after_step(self.model)  # for a word: the embedding row masking of exercise E4
        return Step(self.number, mean, self.optimizer.param_groups[0]["lr"], norm)
