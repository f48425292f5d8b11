"""A part: what is added to a frozen model stands beside it, goes inside for a while, and comes out without a trace.

with part.inside(model):
    ...  # the model computes with it
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor, nn

from minti.model import StableDiffusion


class Part(nn.Module):
    """Something of its own beside a model: a kind of part says in `hooks` how it goes inside.

    Several can be inside one model and leave in any order; each is inside one model at a time.
    """

    name = "the part"  # in messages
    place: slice | EllipsisType = ...  # of its own numbers in its parameters, which may be the model's
    _is_inside = False

    def hooks(self, model: StableDiffusion) -> Iterator[Callable[[], Any]]:
        """Goes inside step by step, and yields after each the function that undoes it."""
        yield from ()

    @contextmanager
    def inside(self, model: StableDiffusion) -> Iterator[None]:
        """A context in which the model has the part. A backward pass belongs inside: checkpointing runs layers anew."""
        if self._is_inside:
            raise RuntimeError(f"{self.name} is inside a model already; leave that first")
        with ExitStack() as stack:
            self._is_inside = True
            stack.callback(setattr, self, "_is_inside", False)
            for undo in self.hooks(model):
                stack.callback(undo)
            yield

    def trained(self) -> list[nn.Parameter]:
        """What the optimizer gets."""
        return list(self.parameters())

    def gradients(self) -> list[Tensor]:
        """The gradients of its own numbers, views that can be written to."""
        return [parameter.grad[self.place] for parameter in self.trained() if parameter.grad is not None]

    def settle(self, model: StableDiffusion) -> None:
        """Brings the model up to date after the values have changed, by a step or because they were loaded."""

    def follow(self, optimizer: torch.optim.Optimizer, model: StableDiffusion) -> None:
        """Settles after every step of the optimizer."""
        optimizer.register_step_post_hook(lambda *_: self.settle(model))

    def __getstate__(self) -> dict[str, Any]:
        """Asked when it is copied, also with a model that it is inside of: nobody could take the copy out again."""
        if self._is_inside:
            raise RuntimeError(f"{self.name} is inside a model, which cannot be copied so; leave it first")
        return self.__dict__
