"""A word that learns: rows of its own, put in the places of its tokens (arXiv 2208.01618; lecture notes `002`, 16).

Of the matrix's other rows, 49,408 in SD v1.4, there is no gradient, optimizer state or copy, and none can change.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from minti.model import StableDiffusion
from minti.parts.part import Part


class Word(Part):
    """The rows of a word.

    Attributes:
        values: (k, d) float32, whatever the model's dtype: what learns.
        first: the id of its first token; the others follow.
    """

    def __init__(self, rows: Tensor, first: int):
        super().__init__()
        self.values, self.first = nn.Parameter(rows.detach().float().clone()), first

    def hooks(self, model: StableDiffusion) -> Iterator[Callable[[], Any]]:
        """Listens to the embedding of the text encoder."""
        yield model.text_encoder.get_input_embeddings().register_forward_hook(self._put).remove

    def _put(self, embedding: nn.Embedding, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        (ids,) = inputs  # b m
        places = (ids >= self.first) & (ids < self.first + len(self.values))
        rows = self.values[ids[places] - self.first].to(output.dtype)
        return output.masked_scatter(places[..., None], rows)  # b m d

    @torch.no_grad()
    def settle(self, model: StableDiffusion) -> None:
        """Copies the rows into the matrix, so that the model has the word also while this part is outside."""
        weight = model.text_encoder.get_input_embeddings().weight
        weight[self.first : self.first + len(self.values)] = self.values.to(weight)
