"""Learned words to and from files."""

from __future__ import annotations

import os
from pathlib import Path

from minti.inversion import TrainingWrapper
from minti.model import StableDiffusion
from minti.text import add_tokens, check_new_placeholder, placeholder_tokens
from minti.weights import read_embeddings, write_embeddings


def save_embeddings(wrapper: TrainingWrapper, path: str | os.PathLike[str]) -> None:
    """Writes the learned rows to a safetensors file that diffusers' `load_textual_inversion` reads; atomic.

    The file holds one tensor, (num_vectors, d) float32, under the placeholder's name.
    """
    write_embeddings(Path(path), {wrapper.config.placeholder_token: wrapper.rows.values})


def load_embeddings(model: StableDiffusion, path: str | os.PathLike[str]) -> list[str]:
    """Adds the words of a file to the model's vocabulary, so that prompts can use them.

    Returns:
        The placeholders.

    Raises:
        FileNotFoundError, ValueError: no such file, not a safetensors file, rows of another width than the model's, or
            a placeholder that exists already.
    """
    embeddings = read_embeddings(Path(path))
    width = model.text_encoder.get_input_embeddings().embedding_dim
    for placeholder, rows in embeddings.items():
        if rows.ndim != 2 or rows.shape[1] != width:
            raise ValueError(
                f"{path}: {placeholder} has shape {tuple(rows.shape)}, but the words of this model are {width} "
                "numbers wide; it was learned on another model"
            )
        check_new_placeholder(model.tokenizer, placeholder)
    for placeholder, rows in embeddings.items():
        add_tokens(model.tokenizer, model.text_encoder, placeholder_tokens(placeholder, len(rows)), rows)
    return list(embeddings)
