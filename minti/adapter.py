"""An adapter: weights beside a frozen model, attached to it by hooks for a while and detached without a trace.

    with adapter.attached(model):
        ...  # the model computes with it

A learned embedding, a LoRA, a ControlNet, an IP-Adapter and whatever watches or changes attention are adapters.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor, nn


class Adapter(nn.Module):
    """Says in `hooks` how it is attached. Several can be attached to one model, and detached in any order."""

    name, _attached = "the adapter", False  # the name: in messages
    own: slice | EllipsisType = ...  # which rows of its parameters are its own; the parameters may be the model's
    constrain: Callable[[Tensor], Any] = staticmethod(lambda values: None)  # of a word: in place, after every step

    def hooks(self, model: Any) -> Iterator[Callable[[], Any]]:
        """Registers its hooks on the model one by one, and yields after each the function that removes it."""
        yield from ()

    @contextmanager
    def attached(self, model: Any) -> Iterator[None]:
        """A context in which the model computes with it; the backward pass belongs inside (gradient checkpointing)."""
        if self._attached:
            raise RuntimeError(f"{self.name} is attached to a model already; detach it first")
        with ExitStack() as stack:
            self._attached = True
            stack.callback(setattr, self, "_attached", False)
            for remove in self.hooks(model):
                stack.callback(remove)
            yield

    def trainable(self) -> list[nn.Parameter]:
        """The parameters that the optimizer gets."""
        return list(self.parameters())

    def gradients(self) -> list[Tensor]:
        """The gradients of its own numbers, views that can be written to."""
        return [parameter.grad[self.own] for parameter in self.trainable() if parameter.grad is not None]

    def before_step(self, model: Any, optimizer: torch.optim.Optimizer) -> None:
        """Called before every optimizer step."""

    def after_step(self, model: Any) -> None:
        """Called after every optimizer step, and after its values were loaded: writes them into the model."""

    def __getstate__(self) -> dict[str, Any]:
        """Refuses to be copied while attached: the copied model's hooks would point to the original."""
        if self._attached:
            raise RuntimeError(f"{self.name} is attached to a model, which cannot be copied so; detach it first")
        return self.__dict__
