"""Safetensors files, with errors in one line."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minti.runs.messages import one_line


def read_tensors(path: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU: mapped from the disk, or converted to `dtype` where it is another.
    Raises FileNotFoundError, ValueError, OSError: names the file."""
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
