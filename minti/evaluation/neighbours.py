"""Nearest neighbours of learned embedding vectors in the vocabulary, by cosine similarity, and their lengths."""

from typing import NamedTuple

import torch

from minti.model import StableDiffusion
from minti.personalization.vocabulary import known_words
from minti.text import token_ids


class LearnedRow(NamedTuple):
    """One embedding vector of a learned word: its token (of `<cat>`: `<cat>`, `<cat>_1`, ...), its length, and the
    nearest words with their cosine similarity."""

    token: str
    length: float
    nearest: list[tuple[str, float]]


@torch.no_grad()
def learned_rows(model: StableDiffusion, word: str, count: int = 5) -> list[LearnedRow]:
    """The embedding vectors of a learned word, such as `<cat>`, with so many neighbours each."""
    ids, added = token_ids(word, model.tokenizer, model.words), model.tokenizer.added_tokens_decoder
    if not ids or any(i not in added or added[i].special for i in ids):
        raise ValueError(f"{word} is not a learned word of this model; load it with minti.load_embeddings")
    words = known_words(model)
    names = list(words)
    matrix = model.text_encoder.get_input_embeddings().weight.float()
    known = torch.nn.functional.normalize(matrix[list(words.values())], dim=1)  # v d
    rows = []
    for i in ids:
        row = matrix[i]
        best = (known @ (row / row.norm())).topk(min(count, len(words)))
        nearest = [(names[j], similarity) for similarity, j in zip(best.values.tolist(), best.indices.tolist())]
        rows.append(LearnedRow(added[i].content, row.norm().item(), nearest))
    return rows
