"""Weights that are numbers: one NaN or infinity among a billion makes every picture and every gradient NaN."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

PIECE = 2**22  # bytes that are looked at at a time
KINDS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def check_tensor(tensor: Tensor, path: Path, name: str) -> None:
    """Refuses floats of which one is not finite.

    The least and the greatest tell: they are NaN where one number is, and unlike a sum they cannot overflow. Besides
    they take one pass and no memory, where `isfinite` takes several passes and a copy.

    Args:
        path, name: which file and tensor to name in an error message.

    Raises:
        ValueError: it holds NaN or an infinity.
    """
    if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
        raise ValueError(f"{path}: {name} has numbers that are not finite; fetch the file again, or use another")


def check_file(path: Path) -> None:
    """Refuses a whole safetensors file in which a float is not finite.

    Reads it piece by piece: what is looked at through the mapping by which the weights are loaded would count as the
    process's memory from then on, all of the model before its first step.

    Raises:
        ValueError: there is one; names the file and the tensor.
    """
    piece = bytearray(PIECE)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, about in header.items():
            if (dtype := KINDS.get(about["dtype"])) is None:
                continue  # whole numbers; what else is no weight is refused elsewhere
            begin, end = about["data_offsets"]
            file.seek(8 + length + begin)
            for left in range(end - begin, 0, -PIECE):
                count = file.readinto(memoryview(piece)[:left])
                check_tensor(torch.frombuffer(piece, dtype=dtype)[: count // dtype.itemsize], path, name)
