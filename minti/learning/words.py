"""Learned words to and from files: diffusers' formats and AUTOMATIC1111's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from minti.checkpoints.weights import read_pickle, read_tensors
from minti.learning.settings import TrainingWrapper
from minti.model import StableDiffusion
from minti.text import add_tokens, check_new_placeholder, placeholder_tokens


def save_embeddings(wrapper: TrainingWrapper, path: str | os.PathLike[str]) -> None:
    """Writes the learned rows to a safetensors file that diffusers' `load_textual_inversion` reads; atomic.

    The file holds one tensor, (num_vectors, d) float32, under the placeholder's name.
    """
    write_embeddings(path, {wrapper.config.placeholder_token: wrapper.rows.values})


def write_embeddings(path: str | os.PathLike[str], words: dict[str, Tensor]) -> None:
    """Writes {placeholder: (num_vectors, d)} as diffusers does.

    A file cut short by a full disk or a power failure never takes the place of a good one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    try:
        # clone: safetensors writes no views
        save_file({token: rows.detach().cpu().float().clone() for token, rows in words.items()}, temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def read_embeddings(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The words of a file, {placeholder: (num_vectors, d)}.

    - diffusers, `.safetensors` or `.bin`: {placeholder: rows};
    - AUTOMATIC1111, `.safetensors`: {"emb_params": rows}, the word is the file's name;
    - AUTOMATIC1111, `.pt` or `.bin`: {"string_to_param": {"*": rows}, "name": word}.

    Raises:
        FileNotFoundError, ValueError: no such file, a damaged one, or none of these; names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of learned words")
    content: Any = read_tensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    if isinstance(content, Mapping) and "string_to_param" in content:
        content = {str(content.get("name") or path.stem): next(iter(content["string_to_param"].values()), None)}
    elif isinstance(content, Mapping) and "emb_params" in content:
        content = {path.stem: content["emb_params"]}
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path} holds no learned words; expected a file of diffusers or of AUTOMATIC1111")
    return {str(token): rows.detach()[None] if rows.ndim == 1 else rows.detach() for token, rows in content.items()}


@torch.no_grad()
def load_embeddings(model: StableDiffusion, path: str | os.PathLike[str], placeholder: str | None = None) -> list[str]:
    """Adds the words of a file to the model's vocabulary, so that prompts can use them.

    Args:
        path: see `read_embeddings`.
        placeholder: what to call the file's word instead of its own name.

    Returns:
        The placeholders.

    Raises:
        FileNotFoundError, ValueError: as `read_embeddings`; rows of another width than the model's, or a placeholder
            that exists already.
    """
    embeddings = read_embeddings(path)
    if placeholder is not None:
        if len(embeddings) > 1:
            raise ValueError(
                f"{path} holds {len(embeddings)} words ({', '.join(embeddings)}); one name cannot serve all"
            )
        embeddings = {placeholder: next(iter(embeddings.values()))}
    width = model.text_encoder.get_input_embeddings().embedding_dim
    for token, rows in embeddings.items():
        if rows.ndim != 2 or rows.shape[1] != width:
            raise ValueError(
                f"{path}: {token} has shape {tuple(rows.shape)}, but the words of this model are {width} "
                "numbers wide; it was learned on another model"
            )
        check_new_placeholder(model.tokenizer, token)
    for token, rows in embeddings.items():
        add_tokens(model.tokenizer, model.text_encoder, placeholder_tokens(token, len(rows)), rows)
    return list(embeddings)
