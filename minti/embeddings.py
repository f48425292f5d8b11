"""Learned embeddings to and from diffusers' file of textual inversion: safetensors, {placeholder: (num_vectors, d)}."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from minti.model import StableDiffusion
from minti.utils import check, plugin


def save_embeddings(wrapper: Any, path: str | os.PathLike[str]) -> None:
    """Writes the learned vectors, {placeholder: (num_vectors, d)}, for diffusers' `load_textual_inversion`."""
    write_embeddings(path, {wrapper.config.placeholder_token: wrapper.embedding.values})


def write_embeddings(path: str | os.PathLike[str], words: dict[str, Tensor]) -> None:
    """Writes {placeholder: (num_vectors, d)}, atomically. Raises ValueError, OSError: it cannot be written."""
    check("runs.word_checks:written_words", path, words)
    with plugin("minti.runs.files:replacing", nullcontext)(path) as temporary:  # clone: safetensors writes no views
        save_file({token: x.detach().cpu().float().clone() for token, x in words.items()}, temporary)


def read_embeddings(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The words of a file, {placeholder: (num_vectors, d)}. Raises OSError, ValueError: names the file."""
    words = plugin("minti.formats.foreign_embeddings:read", load_file)(Path(path))
    check("runs.word_checks:read_words", path, words)
    return {token: (x[None] if x.ndim == 1 else x).detach().float() for token, x in words.items()}


def load_embeddings(model: StableDiffusion, path: str | os.PathLike[str], placeholder: str | None = None) -> list[str]:
    """Loads a file's learned words (textual inversion) into the model's vocabulary. `placeholder`: another name for its
    word. Returns the placeholders. Raises OSError, ValueError: the file, or a word, does not fit; none is added."""
    words = read_embeddings(path)
    if placeholder is not None:
        check("runs.word_checks:one_word", path, words)
        words = {placeholder: next(iter(words.values()))}
    check("runs.word_checks:loaded_words", model, path, words)
    for token, vectors in words.items():
        model.add_word(token, vectors)
    return list(words)
