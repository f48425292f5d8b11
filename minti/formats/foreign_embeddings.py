"""Learned embeddings (textual inversion) in the files of diffusers and AUTOMATIC1111."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from minti.formats.tensors import read_content


def read(path: Path) -> dict[str, Tensor]:
    """The learned words of a file, {placeholder: (num_vectors, d)}; empty where it has none.

    - diffusers, `.safetensors` or `.bin`: {placeholder: vectors};
    - AUTOMATIC1111, `.safetensors`: {"emb_params": vectors}, the word is the file's name;
    - AUTOMATIC1111, `.pt` or `.bin`: {"string_to_param": {"*": vectors}, "name": word}."""
    content = read_content(path, ": no such file of learned words")
    match content:
        case {"string_to_param": Mapping() as parameters}:
            name = content.get("name")
            content = {name if isinstance(name, str) and name else path.stem: next(iter(parameters.values()), None)}
        case {"emb_params": vectors}:
            content = {path.stem: vectors}
    named = isinstance(content, Mapping) and all(isinstance(token, str) for token in content)
    return dict(content) if named and all(isinstance(tensor, Tensor) for tensor in content.values()) else {}
