"""What a learned word is, as rows of numbers: the known words that it lies nearest to, and its length beside theirs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from minti.model import StableDiffusion
from minti.text import expand_placeholders


class LearnedRow(NamedTuple):
    """One row of a learned word.

    Attributes:
        token: the row's token; the rows of `<cat>` are `<cat>`, `<cat>_1`, ...
        length: Euclidean.
        nearest: (word, cosine similarity), the most similar first.
    """

    token: str
    length: float
    nearest: list[tuple[str, float]]


def known_words(model: StableDiffusion) -> dict[str, int]:
    """Whole words of the model and their token ids, in order of these.

    Neither pieces of words, nor single bytes that are no letter, nor placeholders.
    """
    added = model.tokenizer.get_added_vocab()
    vocabulary = sorted(model.tokenizer.get_vocab().items(), key=lambda item: item[1])
    words = {
        token.removesuffix("</w>"): index
        for token, index in vocabulary
        if token.endswith("</w>") and token not in added
    }
    return {word: index for word, index in words.items() if len(word) > 1 or (word.isascii() and word.isalnum())}


@torch.no_grad()
def known_lengths(model: StableDiffusion) -> Tensor:
    """The lengths of the known words' rows, (v,) float32."""
    rows = model.text_encoder.get_input_embeddings().weight[list(known_words(model).values())]
    return rows.float().norm(dim=1).cpu()


@torch.no_grad()
def learned_rows(model: StableDiffusion, word: str, count: int = 5) -> list[LearnedRow]:
    """The rows of a word that was added to the vocabulary.

    Args:
        word: its placeholder, such as `<cat>`.
        count: how many neighbours of each row.

    Raises:
        ValueError: the vocabulary has no such added word.
    """
    tokens = expand_placeholders(word, model.tokenizer).split()
    added = model.tokenizer.get_added_vocab()
    if missing := [token for token in tokens or [word] if token not in added]:
        raise ValueError(f"{missing[0]} is not a learned word of this model; load it with minti.load_embeddings")
    words = known_words(model)
    matrix = model.text_encoder.get_input_embeddings().weight.float()
    known = torch.nn.functional.normalize(matrix[list(words.values())], dim=1)  # v d
    rows = []
    for token in tokens:
        row = matrix[added[token]]
        best = (known @ (row / row.norm())).topk(min(count, len(words)))
        names = list(words)
        nearest = [(names[i], similarity) for similarity, i in zip(best.values.tolist(), best.indices.tolist())]
        rows.append(LearnedRow(token, row.norm().item(), nearest))
    return rows
