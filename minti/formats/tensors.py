"""Files of tensors: safetensors, and pickles (`.ckpt`, `.pt`, `.bin`) by torch's restricted reader, which runs no code
of a file."""

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minti.runs.files import replacing
from minti.runs.messages import one_line, shortened


class ModelCheckpoint:
    """Stands for the class of the training framework that sd-v1-4.ckpt mentions; it does nothing."""

    __module__ = "pytorch_lightning.callbacks.model_checkpoint"  # the name by which the file asks for it


def read_content(path: Path, missing: str = ": no such file") -> Any:
    """What a file holds, a safetensors file by its suffix or a pickle. `missing`: says that there is no such file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}{missing}")
    return read_tensors(path) if path.suffix == ".safetensors" else read_pickle(path)


def read_tensors(path: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU: mapped from the disk, or converted to `dtype` if they differ."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; minti reads weights in the safetensors format only")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        for key in [key for key, tensor in tensors.items() if dtype not in (None, tensor.dtype)]:
            with safe_open(path, framework="pt") as file:  # what was read of a mapped file is held until it is closed
                tensors[key] = file.get_tensor(key).to(dtype)
        return tensors
    except (SafetensorError, NotImplementedError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({one_line(error)}); fetch it again") from None
    except OSError as error:
        raise OSError(f"{path} cannot be read: {one_line(error)}") from None


def read_pickle(path: Path) -> Any:
    """The tensors and plain containers of a pickle; one with anything else is refused."""
    try:
        with torch.serialization.safe_globals([ModelCheckpoint]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        what = re.search(r"(?:GLOBAL|global) (\S+)", str(error))
        asks = f"asks to run {shortened(what[1])}" if what else "is no file of tensors"
        raise ValueError(f"{path} {asks}, which minti refuses; use a safetensors file instead") from None
    except Exception as error:  # torch's reader fails in all manners: struct.error, IndexError, AttributeError ...
        raise ValueError(f"{path} is damaged ({one_line(error)}); fetch it again") from None


def check_finite(path: Path, tensors: Mapping[str, Tensor], name_in_file: Any = str) -> None:
    """Raises ValueError: a tensor that was loaded is NaN or infinite."""
    if wrong := [name_in_file(key) for key, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ValueError(f"{path}: {wrong[0]} has numbers that are not finite; fetch the file again")


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], **metadata: str) -> None:
    """Writes a safetensors file atomically. Raises OSError, ValueError: a tensor is NaN or infinite."""
    if wrong := [key for key, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ValueError(f"{path} is not written: {wrong[0]} is not finite; try a lower learning rate")
    # clone: safetensors writes no views
    copies = {key: x.detach().cpu().clone(memory_format=torch.contiguous_format) for key, x in tensors.items()}
    with replacing(path) as temporary:
        save_file(copies, temporary, {"format": "pt"} | metadata)
