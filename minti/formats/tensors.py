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


class ParameterDict:
    """Stands for torch's, in which the original repository keeps learned words; its state becomes plain attributes."""

    __module__ = "torch.nn.modules.container"


def read_content(path: Path, missing: str = ": no such file") -> Any:
    """What a file of tensors holds, safetensors or a pickle, whatever its name. `missing`: says that there is none."""
    if path.is_dir():
        files = sorted(file.name for file in path.iterdir() if file.suffix in (".safetensors", ".bin", ".pt"))
        raise IsADirectoryError(f"{path} is a folder; name the file in it ({', '.join(files) or 'there is none'})")
    if not path.is_file():
        raise FileNotFoundError(f"{path}{missing}")
    return read_tensors(path) if content_type(path) == "safetensors" else read_pickle(path)


def content_type(path: Path) -> str:
    """ "safetensors", "pickle" or "image", by a file's first bytes; by its name where it is cut short.
    Raises ValueError: a git-lfs pointer, or a web page, in place of a file that was to be fetched."""
    with path.open("rb") as file:
        begin = file.read(64)
    if begin.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a git-lfs pointer, not the file itself; fetch that with `git lfs pull`")
    if begin.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise ValueError(f"{path} is a web page, not the file that it should be; fetch the file itself")
    if begin.startswith(b"\x89PNG") or begin[8:12] == b"WEBP":
        return "image"
    named = path.suffix.lower() == ".safetensors" and not begin.startswith((b"PK\x03\x04", b"\x80\x02"))
    return "safetensors" if begin[4:9] == b"\0\0\0\0{" or named else "pickle"  # behind the header's length, 8 bytes


def read_tensors(path: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU: mapped from the disk, or converted to `dtype` if they differ."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    content_type(path)
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
        with torch.serialization.safe_globals([ModelCheckpoint, ParameterDict]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if what := re.search(r"(?:GLOBAL|global) (\S+)", str(error)):
            asks = f"asks to run {shortened(what[1])}, which minti refuses"
            raise ValueError(f"{path} {asks}; use a safetensors file instead") from None
        raise ValueError(f"{path} is no file of tensors that can be read safely; fetch it again") from None
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
