"""Prompts of more than 77 tokens: chunks of 75, each with its own start and end, whose contexts are joined."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

BACKTRACK = 20  # tokens: A1111's comma_padding_backtrack


def split(ids: Sequence[int], room: int, comma: int | None, words: Mapping[str, Sequence[int]]) -> list[int]:
    """Where the chunks of at most `room` tokens begin, as in AUTOMATIC1111: behind a comma among the last 20 of a full
    chunk, else where it is full; a word of several vectors, one of `words`, stays whole if a chunk can hold it."""
    inner = {i for own in words.values() for i in own[1:]}
    starts, last, at = [0], None, 0  # last: the last comma of this chunk
    while at < len(ids):
        end = at + 1
        while end < len(ids) and ids[end] in inner and ids[end] == ids[end - 1] + 1:
            end += 1
        end = end if end - at <= room else at + 1
        if ids[at] == comma:
            last = at
        elif at - starts[-1] == room and last is not None and at - last <= BACKTRACK:
            starts, last = [*starts, last + 1], None
        if end - starts[-1] > room:
            starts, last = [*starts, at], None
        at = end
    return starts


def padded(context: Tensor, length: int, empty: Tensor) -> Tensor:
    """A context, (b, m, d), made `length` long by those of the empty prompt, (1, 77, d), as prompts and negative
    prompts have to be equally long. Raises ValueError: the length is no whole number of chunks more."""
    more, rest = divmod(length - context.shape[1], empty.shape[1])
    if more < 0 or rest:
        raise ValueError(
            f"a context of {context.shape[1]} tokens cannot be padded to {length} with chunks of {empty.shape[1]}"
        )
    return torch.cat([context, *[empty.to(context).expand(len(context), -1, -1)] * more], dim=1)
