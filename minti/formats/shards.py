"""Sharded weights, and weights in half precision (`variant="fp16"`), as newer model folders have them."""

from pathlib import Path

import torch
from torch import Tensor

from minti.formats.strict import read_json
from minti.formats.tensors import read_tensors
from minti.runs.messages import short_repr


def read_part(
    folder: Path, stem: str, dtype: torch.dtype | None, variant: str | None
) -> tuple[Path, dict[str, Tensor]]:
    """The file to name in messages, and the weights of one part, from it or from the shards that it lists."""
    suffix = f".{variant}" if variant else ""
    path, index = folder / f"{stem}{suffix}.safetensors", folder / f"{stem}.safetensors.index{suffix}.json"
    if path.is_file() or not index.is_file():
        others = sorted(file.name for file in folder.glob(f"{stem}*.safetensors"))
        if others and not path.is_file():
            raise FileNotFoundError(f"{path} is missing; the folder has {', '.join(others)} (variant={variant!r})")
        return path, read_tensors(path, dtype)
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{index} has no weight_map; expected the file of every tensor by its name")
    shards = set(places.values())
    if wrong := sorted(name for name in shards if Path(name).name != name or not name.isprintable()):
        raise ValueError(f"{index} lists {short_repr(wrong[0])}, which is not a file beside it")
    return index, {key: tensor for name in sorted(shards) for key, tensor in read_tensors(folder / name, dtype).items()}
