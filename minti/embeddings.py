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
    """Writes the learned embedding vectors, {placeholder: (num_vectors, d) float32}, as diffusers'
    `load_textual_inversion` reads them. Raises OSError, ValueError: as `write_embeddings`."""
    write_embeddings(path, {wrapper.config.placeholder_token: wrapper.embedding.values})


def write_embeddings(path: str | os.PathLike[str], words: dict[str, Tensor]) -> None:
    """Writes {placeholder: (num_vectors, d)}, atomically.
    Raises ValueError: the file is not a `.safetensors`, or a number is not finite. OSError: it cannot be written."""
    check("runs.checks:written_words", path, words)
    with plugin("minti.runs.files:replacing", nullcontext)(path) as temporary:  # clone: safetensors writes no views
        save_file({token: x.detach().cpu().float().clone() for token, x in words.items()}, temporary)


def read_embeddings(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The words of a file, {placeholder: (num_vectors, d)}: diffusers' safetensors, or what `minti.formats` reads.
    Raises FileNotFoundError, ValueError: no such file, a damaged one, or no word in it; names the file."""
    words = plugin("minti.formats.foreign_embeddings:read", load_file)(Path(path))
    check("runs.checks:read_words", path, words)
    return {token: (x[None] if x.ndim == 1 else x).detach().float() for token, x in words.items()}


def load_embeddings(model: StableDiffusion, path: str | os.PathLike[str], placeholder: str | None = None) -> list[str]:
    """Loads learned words of a file (textual inversion) into the model's vocabulary, so that prompts can use them.
    `placeholder`: what to call the file's word instead of its own name. Returns the placeholders.

    Raises FileNotFoundError, ValueError: as `read_embeddings`; vectors of another width than the model's, or a
    placeholder that exists already. Everything is checked before the first word is added.
    """
    words = read_embeddings(path)
    if placeholder is not None:
        check("runs.checks:one_word", path, words)
        words = {placeholder: next(iter(words.values()))}
    check("runs.checks:loaded_words", model, path, words)
    for token, vectors in words.items():
        model.add_word(token, vectors)
    return list(words)
