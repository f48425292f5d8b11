"""Prompts to context: the CLIP tokenizer and text encoder of Hugging Face, and new words for them.

A word of several vectors is several tokens, named as diffusers names them: `<cat>`, `<cat>_1`, `<cat>_2`. Which belong
together stands in a dictionary of the model's, {placeholder: token ids}, and wherever a prompt says `<cat>`, the others
follow. Lecture notes `002`, 7.3 and chapter 16.
"""

import copy
import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from minti.machine.messages import quoted, shortened, shown

Words = Mapping[str, list[int]]  # {placeholder: the ids of its tokens}


def token_ids(prompt: str, tokenizer: CLIPTokenizer, words: Words) -> list[int]:
    """A prompt's tokens, without beginning and end; behind a word's first token its others follow, once."""
    check_text(prompt, "the prompt")
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
    """Prompts to token ids, between a beginning and an end and padded to the context's length, (b, m) int64.

    Warns of a prompt that is longer, and says what was cut. Raises ValueError: one is not text that can be encoded.
    """
    room, rows = tokenizer.model_max_length - 2, []
    for ids in (token_ids(prompt, tokenizer, words) for prompt in prompts):
        if len(ids) > room:
            cut = quoted(tokenizer.decode(ids[room:]).strip())
            warnings.warn(f"the prompt is longer than {room} tokens; cut off: {cut}", stacklevel=3)
        padding = [tokenizer.pad_token_id] * (room - len(ids))
        rows.append([tokenizer.bos_token_id, *ids[:room], tokenizer.eos_token_id, *padding])
    return torch.tensor(rows)


def encode(input_ids: Tensor, text_encoder: CLIPTextModel) -> Tensor:
    """Token ids (b, m) to context (b, m, d), the last hidden states after the final layer norm."""
    return text_encoder(input_ids.to(text_encoder.device)).last_hidden_state


def placeholder_tokens(placeholder: str, num_vectors: int) -> list[str]:
    """The tokens of a word, as diffusers names them: ["<cat>", "<cat>_1", ...]."""
    return [placeholder] + [f"{placeholder}_{i}" for i in range(1, num_vectors)]


def name_word(tokenizer: CLIPTokenizer, placeholder: str, num_vectors: int) -> list[int]:
    """Adds a word's tokens to the tokenizer, from which they cannot be taken out again; their ids, consecutive.
    Raises ValueError: as `check_new_placeholder`."""
    tokens = placeholder_tokens(placeholder, num_vectors)
    for token in tokens:
        check_new_placeholder(tokenizer, token)
    tokenizer.add_tokens(tokens)
    return tokenizer.convert_tokens_to_ids(tokens)


def tried_word(tokenizer: CLIPTokenizer, placeholder: str, num_vectors: int) -> tuple[CLIPTokenizer, list[int]]:
    """A copy of the tokenizer that knows a new word, and the ids of its tokens.
    Raises ValueError: it cannot be a new word, or the tokenizer would not find it in a prompt."""
    tried = copy.deepcopy(tokenizer)
    ids = name_word(tried, placeholder, num_vectors)
    if token_ids(placeholder, tried, {placeholder: ids}) != ids:
        lost = "would not be found in a prompt by this tokenizer; choose plain letters, such as '<my-concept>'"
        raise ValueError(f"placeholder token {quoted(placeholder)} {lost}")
    return tried, ids


def places(ids: list[int], row: list[int], word: str, prompt: str) -> list[int]:
    """Where a word's ids stand among a prompt's, as often as it stands there. Raises ValueError: nowhere."""
    starts = [i for i in range(len(row)) if ids and row[i : i + len(ids)] == ids]
    if not starts:
        raise ValueError(f"{quoted(word)} is not in the prompt {quoted(prompt)}, or at its end that was cut off")
    return [start + i for start in starts for i in range(len(ids))]


def check_new_placeholder(tokenizer: CLIPTokenizer, placeholder: str) -> None:
    """Raises ValueError: the placeholder is empty, contains white space or what cannot be printed, changes when the
    tokenizer tidies it, or is a word already (it lower-cases, so `<Cat>` and `<cat>` are the same word)."""
    tidied = unicodedata.normalize("NFC", placeholder)
    if not placeholder or not placeholder.isprintable() or re.search(r"\s", placeholder) or tidied != placeholder:
        raise ValueError(f"placeholder token {quoted(placeholder)}: expected one word without spaces, as '<concept>'")
    lower = placeholder.lower()
    for token in tokenizer.get_vocab():
        if token.lower() in (lower, lower + "</w>"):
            same = "" if token in (placeholder, placeholder + "</w>") else f" as {token.removesuffix('</w>')!r}"
            known = f"placeholder token {quoted(placeholder)} is in the vocabulary already{same} (case does not count)"
            raise ValueError(f"{known}; choose a word that does not exist, such as '<my-concept>'")


def check_text(text: str, what: str) -> None:
    """Raises ValueError: the text is no str, or cannot be encoded (half characters come from file names and command
    lines that are not UTF-8); calls it `what`."""
    if not isinstance(text, str):
        raise ValueError(f"{what} {shown(text)} is not text; expected a str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"half a character (a lone surrogate) at {error.start}"
        raise ValueError(f"{what} {quoted(text)} holds {half}; expected UTF-8") from None


def single_token_id(tokenizer: CLIPTokenizer, word: str) -> int:
    """The id of a word that is one token. Raises ValueError: it is not a single token, or unknown."""
    check_text(word, "initializer token")
    ids = tokenizer(word, add_special_tokens=False, verbose=False).input_ids
    if len(ids) != 1 or ids[0] in tokenizer.all_special_ids:
        pieces = shortened(" + ".join(tokenizer.convert_ids_to_tokens(ids))) or "nothing"
        found = f"initializer token {quoted(word)} is not a single token of this vocabulary (it becomes {pieces})"
        raise ValueError(f"{found}; choose a plain word, or several, that say roughly what the pictures show")
    return ids[0]
