"""Making only some rows of an embedding trainable, in two forms that learn the same vector.

- `RestoredRows` is the recipe of exercise E4, task 2: the whole matrix is the parameter; after every optimizer step the
  old rows are overwritten with a copy of what they were.
- `NewRows` is the lean form and the default: the new rows alone are the parameter, so that no gradient, optimizer state
  or copy exists for the other 49,408.

Both are used alike: hand `parameters` to an optimizer, `attach` it, and read `values` and `gradient`, which are those
of the new rows alone.
"""

from __future__ import annotations

import types
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn


class TrainableRows(ABC):
    """Some rows at the end of an embedding that train while all other rows stay as they are.

    Attributes:
        embedding: the layer, (vocabulary, d).
        start: the first new row.
        parameters: what the optimizer gets.
    """

    parameters: list[nn.Parameter]

    def __init__(self, embedding: nn.Embedding, start: int):
        self.embedding, self.start = embedding, start

    @property
    @abstractmethod
    def values(self) -> Tensor:
        """The new rows, (k, d): a view that can be written to under `torch.no_grad`."""

    @property
    @abstractmethod
    def gradient(self) -> Tensor | None:
        """The gradient of the new rows alone, (k, d), a view; None before the first backward pass."""

    @abstractmethod
    def refresh(self) -> None:
        """Puts the embedding in order after its parameters or `values` were written to."""

    def detach(self) -> None:
        """Ends the training: the rows stay in the embedding as they are, and nothing in it is trainable."""
        self.embedding.weight.requires_grad_(False)

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Patches `optimizer.step` so that every step ends with `refresh`.

        The patched step is a bound method: torch's learning-rate schedulers look for its `__func__`.
        """
        original_step = optimizer.step

        def patched_step(self: torch.optim.Optimizer, closure: Callable[[], float] | None = None) -> float | None:
            result = original_step(closure)
            rows.refresh()
            return result

        rows = self
        optimizer.step = types.MethodType(patched_step, optimizer)


class RestoredRows(TrainableRows):
    """E4's recipe: train the whole matrix, then overwrite its old part with a copy of the original."""

    def __init__(self, embedding: nn.Embedding, start: int):
        super().__init__(embedding, start)
        embedding.weight.requires_grad_(True)
        self.parameters = [embedding.weight]
        self.original = embedding.weight.detach()[:start].clone()

    @property
    def values(self) -> Tensor:
        """The rows from `start` on, (k, d)."""
        return self.embedding.weight[self.start :]

    @property
    def gradient(self) -> Tensor | None:
        """Their part of the matrix's gradient, (k, d)."""
        # The whole matrix also holds gradients of the template's words and of the padding.
        gradient = self.embedding.weight.grad
        return None if gradient is None else gradient[self.start :]

    @torch.no_grad()
    def refresh(self) -> None:
        """Overwrites the old rows with their copy."""
        self.embedding.weight[: self.start] = self.original


class NewRows(TrainableRows):
    """The lean form: a float32 parameter of the new rows alone, which a hook puts in their tokens' places."""

    def __init__(self, embedding: nn.Embedding, start: int):
        super().__init__(embedding, start)
        embedding.weight.requires_grad_(False)
        self.rows = nn.Parameter(embedding.weight.detach()[start:].float().clone())
        self.parameters = [self.rows]
        self._hook = embedding.register_forward_hook(self._replace)

    def _replace(self, embedding: nn.Embedding, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        (ids,) = inputs  # b n
        places = ids >= self.start
        new = self.rows[ids[places] - self.start].to(output.dtype)
        return output.masked_scatter(places[..., None], new)  # b n d

    @property
    def values(self) -> Tensor:
        """The parameter, (k, d)."""
        return self.rows

    @property
    def gradient(self) -> Tensor | None:
        """The parameter's gradient, (k, d)."""
        return self.rows.grad

    @torch.no_grad()
    def refresh(self) -> None:
        """Copies the parameter into the matrix."""
        # The matrix keeps up with the parameter, so that whoever reads it finds the learned rows.
        self.embedding.weight[self.start :] = self.rows.to(self.embedding.weight)

    def detach(self) -> None:
        """Also removes the hook."""
        super().detach()
        self._hook.remove()


ROW_UPDATES: dict[str, type[TrainableRows]] = {"new_rows": NewRows, "restore": RestoredRows}
