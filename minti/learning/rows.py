"""Making only some rows of an embedding trainable, in two forms that learn the same vector.

- `RestoredRows` is the recipe of exercise E4, task 2: the whole matrix is the parameter; after every optimizer step the
  other rows are overwritten with a copy of what they were.
- `NewRows` is the lean form and the default: the new rows alone are the parameter, so that no gradient, optimizer state
  or copy exists for the other 49,408.

Both are used alike: hand `parameters` to an optimizer, `attach` it, and read `values` and `gradient`, which are those
of the new rows alone. `detach` ends the training; the embedding is then an ordinary one with the learned rows in it.
"""

from __future__ import annotations

import types
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class TrainableRows(ABC):
    """Some rows of an embedding that train while all other rows stay as they are.

    Attributes:
        embedding: the layer, (vocabulary, d); it may grow while they train.
        start, stop: the rows are start .. stop - 1.
        longest: what each row is cut back to after a step; None lets it grow.
        parameters: what the optimizer gets.
        place: where in the parameter the rows are.
    """

    parameters: list[nn.Parameter]
    place: slice

    def __init__(self, embedding: nn.Embedding, start: int, stop: int, longest: float | None = None):
        self.embedding, self.start, self.stop, self.longest = embedding, start, stop, longest
        embedding.weight.requires_grad_(False)

    @property
    @abstractmethod
    def values(self) -> Tensor:
        """The rows, (k, d): a view that can be written to under `torch.no_grad`."""

    @property
    @abstractmethod
    def gradient(self) -> Tensor | None:
        """The gradient of these rows alone, (k, d), a view; None before the first backward pass."""

    @abstractmethod
    def activate(self) -> None:
        """Makes the rows trainable, again after `detach`."""

    @abstractmethod
    def detach(self) -> None:
        """Ends the training: the rows stay in the embedding as they are, and nothing in it is trainable."""

    @abstractmethod
    def settle(self) -> None:
        """Puts the embedding in order after the parameters or `values` were written to."""

    def part(self, tensor: Tensor) -> Tensor:
        """What of the optimizer's state, a tensor like the parameter or a number, is these rows' own."""
        return tensor[self.place] if tensor.ndim == 2 else tensor

    def whole(self, part: Tensor) -> Tensor:
        """The optimizer's state, of which `part` is these rows' own; for the others it does not matter."""
        whole = torch.zeros_like(self.parameters[0]) if part.ndim == 2 else part
        whole[self.place if part.ndim == 2 else ...] = part
        return whole

    @torch.no_grad()
    def write(self, values: Tensor) -> None:
        """Sets the rows to (k, d)."""
        self.values.copy_(values)
        self.settle()

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Patches `optimizer.step` so that every step leaves the embedding in order.

        The patched step is a bound method: torch's learning-rate schedulers look for its `__func__`.
        """
        original_step = optimizer.step

        @torch.no_grad()
        def patched_step(self: torch.optim.Optimizer, closure: Callable[[], float] | None = None) -> float | None:
            result = original_step(closure)
            if rows.longest is not None:
                lengths = rows.values.norm(dim=1, keepdim=True)  # k 1
                rows.values.mul_((rows.longest / lengths).clamp(max=1))
            rows.settle()
            return result

        rows = self
        optimizer.step = types.MethodType(patched_step, optimizer)


class RestoredRows(TrainableRows):
    """E4's recipe: train the whole matrix, then overwrite its other rows with a copy of what they were."""

    def __init__(self, embedding: nn.Embedding, start: int, stop: int, longest: float | None = None):
        super().__init__(embedding, start, stop, longest)
        self.parameters, self.place = [embedding.weight], slice(start, stop)
        self.original: Tensor | None = None
        self.activate()

    @property
    def values(self) -> Tensor:
        """Their part of the matrix, (k, d)."""
        return self.embedding.weight[self.start : self.stop]

    @property
    def gradient(self) -> Tensor | None:
        """Their part of the matrix's gradient, (k, d)."""
        # The whole matrix also holds gradients of the template's words and of the padding.
        gradient = self.embedding.weight.grad
        return None if gradient is None else gradient[self.start : self.stop]

    def activate(self) -> None:
        """Makes the whole matrix trainable."""
        self.embedding.weight.requires_grad_(True)

    def detach(self) -> None:
        """Makes it an ordinary one again."""
        self.embedding.weight.requires_grad_(False)
        self.embedding.weight.grad = self.original = None

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Also copies the matrix before every step."""
        super().attach(optimizer)
        optimizer.register_step_pre_hook(self._copy)

    def _copy(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        weight = self.embedding.weight
        self.original = weight.detach().clone()
        state = optimizer.state.get(weight, {})
        for key, value in state.items():  # words that were added in the meantime have moved nowhere yet
            if value.ndim == 2 and len(value) < len(weight):
                state[key] = F.pad(value, (0, 0, 0, len(weight) - len(value)))

    @torch.no_grad()
    def settle(self) -> None:
        """Overwrites the other rows with their copy, once: what is learned or loaded from now on is newer."""
        if self.original is not None:
            self.embedding.weight[: self.start] = self.original[: self.start]
            self.embedding.weight[self.stop :] = self.original[self.stop :]
            self.original = None


class NewRows(TrainableRows):
    """The lean form: a float32 parameter of the new rows alone, which a hook puts in their tokens' places."""

    def __init__(self, embedding: nn.Embedding, start: int, stop: int, longest: float | None = None):
        super().__init__(embedding, start, stop, longest)
        self.parameter = nn.Parameter(embedding.weight.detach()[start:stop].float().clone())
        self.parameters, self.place = [self.parameter], slice(None)
        self._hook: RemovableHandle | None = None
        self.activate()

    def _replace(self, embedding: nn.Embedding, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        (ids,) = inputs  # b m
        places = (ids >= self.start) & (ids < self.stop)
        new = self.parameter[ids[places] - self.start].to(output.dtype)
        return output.masked_scatter(places[..., None], new)  # b m d

    @property
    def values(self) -> Tensor:
        """The parameter, (k, d)."""
        return self.parameter

    @property
    def gradient(self) -> Tensor | None:
        """The parameter's gradient, (k, d)."""
        return self.parameter.grad

    def activate(self) -> None:
        """Hooks the parameter in."""
        self._hook = self._hook or self.embedding.register_forward_hook(self._replace)

    def detach(self) -> None:
        """Removes the hook."""
        if self._hook is not None:
            self._hook.remove()
        self._hook = self.parameter.grad = None

    @torch.no_grad()
    def settle(self) -> None:
        """Copies the parameter into the matrix, so that whoever reads it finds the learned rows."""
        self.embedding.weight[self.start : self.stop] = self.parameter.to(self.embedding.weight)


ROW_UPDATES: dict[str, type[TrainableRows]] = {"new_rows": NewRows, "restore": RestoredRows}
