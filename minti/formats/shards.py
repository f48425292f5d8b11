"""Sharded weights, those in half precision (`variant="fp16"`), and pickles, as model folders have them."""

import re
import warnings
from pathlib import Path

import torch
from torch import Tensor

from minti.formats.single_file import read_file
from minti.formats.strict import read_json
from minti.formats.tensors import read_tensors
from minti.runs.messages import short_repr


def read_part(
    folder: Path, stem: str, dtype: torch.dtype | None, variant: str | None
) -> tuple[Path, dict[str, Tensor]]:
    """The file to name in messages, and the weights of one part, from it or from the shards that it lists. Without a
    variant, and where there are no plain weights, it is the only variant, or the only pickle; warns of it."""
    suffix = f".{variant}" if variant else ""
    path, index = folder / f"{stem}{suffix}.safetensors", folder / f"{stem}.safetensors.index{suffix}.json"
    if not path.is_file() and not index.is_file():
        others = sorted(file.name for file in folder.glob(f"*{stem}*") if file.suffix in (".safetensors", ".bin"))
        matches = [re.fullmatch(rf"{stem}\.(\w+)(-\d+-of-\d+)?\.safetensors", name) for name in others]
        variants = {match[1] for match in matches if match}
        if variant is None and len(variants) == 1:
            warnings.warn(
                f"{folder}: taking the weights of variant {min(variants)}, for there are no others", stacklevel=2
            )
            return read_part(folder, stem, dtype, min(variants))
        if variant is None and len(others) == 1 and others[0].endswith(".bin"):
            warnings.warn(f"{folder}: taking {others[0]}, for there are no other weights", stacklevel=2)
            return folder / others[0], read_file(folder / others[0])
        if others:
            raise FileNotFoundError(f"{path} is missing; the folder has {', '.join(others)} (variant={variant!r})")
    if path.is_file() or not index.is_file():
        return path, read_tensors(path, dtype)
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{index} has no weight_map; expected the file of every tensor by its name")
    shards = set(places.values())
    if wrong := sorted(name for name in shards if Path(name).name != name or not name.isprintable()):
        raise ValueError(f"{index} lists {short_repr(wrong[0])}, which is not a file beside it")
    return index, {key: tensor for name in sorted(shards) for key, tensor in read_tensors(folder / name, dtype).items()}
