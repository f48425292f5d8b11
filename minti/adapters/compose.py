"""Several adapters as one: a learned embedding and a LoRA, say, trained in the same steps, each at its own rate."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from minti.adapter import Adapter


class Compose(Adapter):
    """Adapters that are attached to a model one after another, and detached in the opposite order."""

    def __init__(self, *adapters: Adapter):
        super().__init__()
        self.adapters = nn.ModuleList(adapters)
        self.name = " and ".join(adapter.name for adapter in adapters)

    def hooks(self, model: Any) -> Iterator[Callable[[], Any]]:
        """Attaches one after another."""
        for adapter in self.adapters:
            stack = ExitStack()
            stack.enter_context(adapter.attached(model))
            yield stack.close

    def before_step(self, model: Any, optimizer: torch.optim.Optimizer) -> None:
        """Tells each of a step that begins."""
        for adapter in self.adapters:
            adapter.before_step(model, optimizer)

    def after_step(self, model: Any) -> None:
        """Tells each of a step that has ended."""
        for adapter in self.adapters:
            adapter.after_step(model)
