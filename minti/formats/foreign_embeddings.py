"""Learned words as diffusers and AUTOMATIC1111 write them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from minti.formats.pickles import read_pickle
from minti.formats.tensors import read_tensors


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, {placeholder: (num_vectors, d)}; empty where it has no words.

    - diffusers, `.safetensors` or `.bin`: {placeholder: vectors};
    - AUTOMATIC1111, `.safetensors`: {"emb_params": vectors}, the word is the file's name;
    - AUTOMATIC1111, `.pt` or `.bin`: {"string_to_param": {"*": vectors}, "name": word}.

    Raises ValueError: the file is damaged, or holds more than tensors; names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of learned words")
    content: Any = read_tensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    match content:
        case {"string_to_param": Mapping() as parameters}:
            name = content.get("name")
            content = {name if isinstance(name, str) and name else path.stem: next(iter(parameters.values()), None)}
        case {"emb_params": vectors}:
            content = {path.stem: vectors}
    named = isinstance(content, Mapping) and all(isinstance(token, str) for token in content)
    return dict(content) if named and all(isinstance(tensor, Tensor) for tensor in content.values()) else {}
