"""The vocabulary that a model came with: its whole words, and the tokens of a phrase."""

import os
import warnings
from itertools import chain, count, takewhile
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

from minti.model import StableDiffusion
from minti.runs.messages import short_repr, shortened
from minti.runs.word_checks import check_text
from minti.text import single_token_id, token_ids

EXTENSIONS = (".safetensors", ".pt", ".bin")  # of files of learned words; they may be images, too


def known_words(model: StableDiffusion) -> dict[str, int]:
    """Whole words of the model and their token ids, in order of these; neither pieces of words, nor single bytes that
    are no letter, nor placeholders."""
    added = model.tokenizer.get_added_vocab()
    vocabulary = sorted(model.tokenizer.get_vocab().items(), key=lambda item: item[1])
    words = {token.removesuffix("</w>"): i for token, i in vocabulary if token.endswith("</w>") and token not in added}
    return {word: i for word, i in words.items() if len(word) > 1 or (word.isascii() and word.isalnum())}


def words_of(tokenizer: CLIPTokenizer) -> dict[str, list[int]]:
    """Words of several vectors that a saved pipeline's tokenizer has, {placeholder: token ids}: where a prompt says
    `<cat>`, diffusers' `maybe_convert_prompt` makes it `<cat> <cat>_1`, for as many as there are."""
    added, words = tokenizer.get_added_vocab(), {}
    for token in added:
        parts = list(takewhile(added.__contains__, chain([token], (f"{token}_{i}" for i in count(1)))))
        if len(parts) > 1:
            words[token] = [added[part] for part in parts]
    return words


def is_phrase(text: str | None) -> bool:
    """Whether it is several words."""
    return isinstance(text, str) and len(text.split()) > 1


def is_learned(initializer: Any) -> bool:
    """Whether an initializer is learned vectors, or a file of them: a Path, or a text that ends as such a file or names
    one, or a folder. Without a dot or a slash it is a word, whatever files there are."""
    if not isinstance(initializer, str):
        return initializer is not None
    named = any(mark in initializer for mark in "./\\") and os.path.exists(initializer)
    return named or Path(initializer).suffix in EXTENSIONS


def known_ids(model: StableDiffusion, begin: str) -> list[int]:
    """The token ids of a known word, which is a single token, or of a phrase, whose words may be several each.
    Raises ValueError: the word is not a single token; a word of the phrase falls into single characters."""
    if not is_phrase(begin):
        return [single_token_id(model.tokenizer, begin)]
    check_text(begin, "initializer")
    tokenizer = model.tokenizer
    for word in begin.split():
        ids = tokenizer(word, add_special_tokens=False, verbose=False).input_ids
        pieces = [piece.removesuffix("</w>") for piece in tokenizer.convert_ids_to_tokens(ids)]
        if set(ids) & set(tokenizer.all_special_ids) or (len(word) > 1 and all(len(piece) == 1 for piece in pieces)):
            unknown = f"the vocabulary does not know {short_repr(word)}; say it in other words"
            raise ValueError(f"initializer {short_repr(begin)}: {unknown}")
        if len(ids) > 1:
            made_of = shortened(" + ".join(pieces))
            warnings.warn(
                f"initializer {short_repr(begin)}: {short_repr(word)} is no single token but {made_of}", stacklevel=2
            )
    return token_ids(begin, tokenizer, model.words)
