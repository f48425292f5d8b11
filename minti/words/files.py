"""Words to and from files: diffusers' formats and AUTOMATIC1111's."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from minti.checkpoints.weights import read_pickle, read_tensors
from minti.machine.files import replacing
from minti.machine.messages import shortened
from minti.model import StableDiffusion
from minti.text import placeholder_tokens, tried_word


def write_embeddings(path: str | os.PathLike[str], words: dict[str, Tensor]) -> None:
    """Writes {placeholder: (num_vectors, d)} as diffusers does; whatever happens, a good file is not lost.
    Raises ValueError: the file is not to be a `.safetensors`, or a number is not finite. OSError: see `replacing`."""
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"{path}: learned words are written as safetensors only; end the name in .safetensors")
    for token, rows in words.items():
        if not rows.isfinite().all():
            raise ValueError(f"{path} is not written: the rows of {token} are not finite; try a lower learning rate")
    with replacing(path) as temporary:  # clone: safetensors writes no views
        save_file({token: rows.detach().cpu().float().clone() for token, rows in words.items()}, temporary)


def read_embeddings(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The words of a file, {placeholder: (num_vectors, d)}.

    - diffusers, `.safetensors` or `.bin`: {placeholder: rows};
    - AUTOMATIC1111, `.safetensors`: {"emb_params": rows}, the word is the file's name;
    - AUTOMATIC1111, `.pt` or `.bin`: {"string_to_param": {"*": rows}, "name": word}.

    Raises FileNotFoundError, ValueError: no such file, a damaged one, or none of these; names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of learned words")
    content: Any = read_tensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    match content:
        case {"string_to_param": Mapping() as parameters}:
            name = content.get("name")
            content = {name if isinstance(name, str) and name else path.stem: next(iter(parameters.values()), None)}
        case {"emb_params": rows}:
            content = {path.stem: rows}
    named = isinstance(content, Mapping) and all(isinstance(token, str) for token in content)
    if not named or not content or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise ValueError(f"{path} holds no learned words; expected a file of diffusers or of AUTOMATIC1111")
    return {token: _rows(tensor.detach(), f"{path}: {shortened(token)}") for token, tensor in content.items()}


def _rows(tensor: Tensor, what: str) -> Tensor:
    """A word's tensor as its rows, (n, d), of a dtype that can be computed with. Raises ValueError: says of `what`."""
    rows = tensor[None] if tensor.ndim == 1 else tensor
    kind = f"{tuple(rows.shape)} {str(rows.dtype).removeprefix('torch.')}"
    plain = rows.layout == torch.strided and rows.is_floating_point() and not rows.is_meta
    if rows.ndim != 2 or 0 in rows.shape or not plain:
        raise ValueError(f"{what} is {kind}; expected its rows, (n, d), of floating point numbers")
    if rows.dtype.itemsize == 1:
        rows = rows.float()  # an 8-bit number cannot even be asked whether it is finite
    if not rows.isfinite().all():
        raise ValueError(f"{what}, {kind}, has numbers that are not finite; learn it again")
    return rows


@torch.no_grad()
def load_embeddings(model: StableDiffusion, path: str | os.PathLike[str], placeholder: str | None = None) -> list[str]:
    """Adds the words of a file to the model's vocabulary, so that prompts can use them.

    `placeholder`: what to call the file's word instead of its own name. Returns the placeholders.

    Raises FileNotFoundError, ValueError: as `read_embeddings`; rows of another width than the model's, or a placeholder
    that exists already.
    """
    embeddings = read_embeddings(path)
    if placeholder is not None:
        if len(embeddings) > 1:
            words = f"{len(embeddings)} words ({shortened(', '.join(embeddings))})"
            raise ValueError(f"{path} holds {words}; one name cannot serve all")
        embeddings = {placeholder: next(iter(embeddings.values()))}
    weight = model.text_encoder.get_input_embeddings().weight
    for token, rows in embeddings.items():  # all are looked at before the first is added
        if rows.shape[1] != weight.shape[1]:
            own = f"the words of this model are {weight.shape[1]} numbers wide; it was learned on another model"
            raise ValueError(f"{path}: {shortened(token)} has shape {tuple(rows.shape)}, but {own}")
        if len(rows) > model.tokenizer.model_max_length - 2:
            raise ValueError(f"{path}: {shortened(token)} has {len(rows)} vectors, more than a prompt can hold")
        if not rows.to(weight).isfinite().all():
            raise ValueError(f"{path}: {shortened(token)} has numbers too large for this model's {weight.dtype}")
        try:
            tried_word(model.tokenizer, token, len(rows))
        except ValueError as error:
            raise ValueError(f"{path}: {error}, under which to load it") from None
    tokens = [part.lower() for token, rows in embeddings.items() for part in placeholder_tokens(token, len(rows))]
    if len(set(tokens)) < len(tokens):
        raise ValueError(f"{path} holds words that are the same but for their case: {shortened(', '.join(embeddings))}")
    for token, rows in embeddings.items():
        model.add_word(token, rows)
    return list(embeddings)
