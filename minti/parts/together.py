"""Several parts as one: a word and a LoRA, say, that learn in the same steps, each at a rate of its own."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from minti.model import StableDiffusion
from minti.parts.part import Part


class Together(Part):
    """Parts that go inside a model one after another, and come out in the opposite order."""

    def __init__(self, *parts: Part):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.name = " and ".join(part.name for part in parts)

    def hooks(self, model: StableDiffusion) -> Iterator[Callable[[], Any]]:
        """Those of each in turn."""
        for part in self.parts:
            yield from part.hooks(model)

    def settle(self, model: StableDiffusion) -> None:
        """Settles each."""
        for part in self.parts:
            part.settle(model)

    def follow(self, optimizer: torch.optim.Optimizer, model: StableDiffusion) -> None:
        """Each settles after every step."""
        for part in self.parts:
            part.follow(optimizer, model)
