"""Which token of a prompt is which of another: what prompt-to-prompt (arXiv 2208.01626) injects the weights by."""

from collections.abc import Sequence
from difflib import SequenceMatcher

import torch
from torch import Tensor

from minti.model import StableDiffusion
from minti.text import places, token_ids


def alignment(source: Sequence[int], edited: Sequence[int], room: int) -> Tensor:
    """M of two prompts' tokens, (room, room): column j says of which source's tokens the edit's j-th has the weights.

    Equal tokens are matched in order, and what stands between two matches in both prompts is a swap: one to one, or
    each of the k tokens in its place gets a k-th, as in the authors' code. Behind the shorter prompt all stay in place.
    Raises ValueError: no token in common.
    """
    moved = torch.eye(room)
    moved[:, : len(edited)] = 0
    matcher = SequenceMatcher(None, source, edited, autojunk=False)
    if sum(match.size for match in matcher.get_matching_blocks()) <= 2:  # beginning and end
        raise ValueError("a prompt and its edit have no word in common, so they cannot be aligned; change few words")
    for kind, i, i_end, j, j_end in matcher.get_opcodes():
        if kind in ("equal", "replace"):
            moved[i:i_end, j:j_end] = torch.eye(j_end - j) if i_end - i == j_end - j else 1 / (j_end - j)
    return moved


def ids_of(model: StableDiffusion, prompt: str) -> list[int]:
    """A prompt's tokens with beginning and end, without padding."""
    ids = token_ids(prompt, model.tokenizer, model.words)
    return [model.tokenizer.bos_token_id, *ids[: model.tokenizer.model_max_length - 2], model.tokenizer.eos_token_id]


def positions(model: StableDiffusion, prompt: str, word: str) -> list[int]:
    """Where a word's tokens stand in a prompt. Raises ValueError: nowhere."""
    return places(token_ids(word, model.tokenizer, model.words), ids_of(model, prompt), word, prompt)
