"""E4's own recipe (`000`, task 2): train the whole embedding matrix, and put its other rows back after every step."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minti.model import StableDiffusion
from minti.parts.part import Part


class RestoredMatrix(Part):
    """The rows of a word, as a place in a matrix that trains as a whole; learns what `Word` learns.

    Attributes:
        first: the id of the word's first token; the others follow.
        place: where in the matrix the word's rows are; those of the template's words have gradients, too.
    """

    def __init__(self, embedding: nn.Embedding, first: int, count: int):
        super().__init__()
        self.first, self.place = first, slice(first, first + count)
        self._embedding = (embedding,)  # in a tuple, since the matrix is the model's and no parameter of this part
        self._others: Tensor | None = None

    @property
    def weight(self) -> nn.Parameter:
        """The whole matrix, (vocabulary, d); it may grow behind the word."""
        return self._embedding[0].weight

    @property
    def values(self) -> Tensor:
        """The word's rows, (k, d), a view of the matrix."""
        return self.weight[self.place]

    def hooks(self, model: StableDiffusion) -> Iterator[Callable[[], Any]]:
        """Makes the whole matrix trainable."""
        self.weight.requires_grad_(True)
        yield self._freeze

    def _freeze(self) -> None:
        self.weight.requires_grad_(False)
        self.weight.grad = None

    def trained(self) -> list[nn.Parameter]:
        """The matrix."""
        return [self.weight]

    def follow(self, optimizer: torch.optim.Optimizer, model: StableDiffusion) -> None:
        """Also copies the matrix before every step."""
        optimizer.register_step_pre_hook(self._remember)
        super().follow(optimizer, model)

    def _remember(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._others = self.weight.detach().clone()
        state = optimizer.state.get(self.weight, {})
        for key, value in state.items():  # words that were added in the meantime have moved nowhere yet
            if value.ndim == 2 and len(value) < len(self.weight):
                state[key] = F.pad(value, (0, 0, 0, len(self.weight) - len(value)))

    @torch.no_grad()
    def settle(self, model: StableDiffusion) -> None:
        """Puts the other rows back, once: what is learned or loaded from now on is newer."""
        if self._others is not None:
            self.weight[: self.first] = self._others[: self.first]
            self.weight[self.place.stop :] = self._others[self.place.stop :]
            self._others = None

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Tensor]:
        """The word's rows."""
        return {"values": self.values.detach()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor], *args: Any, **options: Any) -> None:
        """Takes the word's rows."""
        self.values.copy_(state["values"])
