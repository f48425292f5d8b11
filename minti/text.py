"""Prompts to token ids, by the CLIP tokenizer of Hugging Face, and placeholder tokens for words (`002`, 7.3 and 16).

A word of several embedding vectors is several tokens, named as in diffusers: `<cat>`, `<cat>_1`, `<cat>_2`. The model's
`words`, {placeholder: token ids}, says which belong together, and wherever a prompt says `<cat>`, the others follow.
"""

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from minti.utils import check

Words = Mapping[str, list[int]]  # {placeholder: the ids of its tokens}


def token_ids(prompt: str, tokenizer: CLIPTokenizer, words: Words) -> list[int]:
    """A prompt's tokens, without those of start and end; a word's others follow its first, unless they do already."""
    check("runs.word_checks:check_text", prompt, "the prompt")
    others = {ids[0]: ids[1:] for ids in words.values()}
    expanded: list[int] = []
    waiting: list[int] = []  # what has to follow; it may stand there already
    for i in tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids:
        if waiting and i == waiting[0]:
            waiting.pop(0)
        else:
            expanded += waiting
            waiting = list(others.get(i, ()))
        expanded.append(i)
    return expanded + waiting


def tokenize(prompts: Sequence[str], tokenizer: CLIPTokenizer, words: Words) -> Tensor:
    """Prompts to token ids, (b, m) int64, padded to the context's length. Warns of a prompt that is longer, and cut."""
    check("runs.word_checks:prompts", prompts, tokenizer)
    room, rows = tokenizer.model_max_length - 2, []
    for ids in (token_ids(prompt, tokenizer, words) for prompt in prompts):
        if len(ids) > room:
            cut = f"{room} tokens; cut off: {tokenizer.decode(ids[room : room + 50]).replace('</w>', ' ').strip()!r}"
            warnings.warn(f"the prompt is longer than {cut} (--long-prompts keeps it)", stacklevel=3)  # </w>: of a copy
        padding = [tokenizer.pad_token_id] * (room - len(ids))
        rows.append([tokenizer.bos_token_id, *ids[:room], tokenizer.eos_token_id, *padding])
    return torch.tensor(rows)


def placeholder_tokens(placeholder: str, num_vectors: int) -> list[str]:
    """The tokens of a word, as diffusers names them: ["<cat>", "<cat>_1", ...]."""
    return [placeholder] + [f"{placeholder}_{i}" for i in range(1, num_vectors)]


def add_tokens(tokenizer: CLIPTokenizer, placeholder: str, num_vectors: int) -> list[int]:
    """Adds a word's tokens to the tokenizer; their ids, consecutive. Raises ValueError: it cannot be a new word."""
    tokens = placeholder_tokens(placeholder, num_vectors)
    check("runs.word_checks:check_new_placeholders", tokenizer, tokens)
    tokenizer.add_tokens(tokens)
    return tokenizer.convert_tokens_to_ids(tokens)


def single_token_id(tokenizer: CLIPTokenizer, word: str) -> int:
    """The id of a word that is one token. Raises ValueError: it is not a single token, or unknown."""
    ids = token_ids(word, tokenizer, {})
    check("runs.word_checks:single_token", tokenizer, word, ids)
    return ids[0]
