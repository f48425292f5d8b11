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
        names = sorted(file.name for file in folder.glob(f"*{stem}*") if not file.name.startswith("."))
        others = [name for name in names if name.endswith((".safetensors", ".bin"))]
        pickles = [name for name in (f"{stem}.bin", f"pytorch_{stem}.bin") if name in others]
        if variant is None and pickles:  # in full precision
            warnings.warn(f"{folder}: taking {pickles[0]}, for there is no {path.name}", stacklevel=2)
            return folder / pickles[0], read_file(folder / pickles[0])
        matches = [re.fullmatch(rf"{stem}\.(\w+)(-\d+-of-\d+)?\.safetensors", name) for name in others]
        variants = {match[1] for match in matches if match}
        if variant is None and len(variants) == 1:
            only = min(variants)
            warnings.warn(f"{folder}: taking the weights of variant {only}, for there are no others", stacklevel=2)
            return read_part(folder, stem, dtype, only)
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
