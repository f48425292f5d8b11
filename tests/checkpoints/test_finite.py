"""Weights with NaN or an infinity among them are refused on loading; file and tensor are named."""

import math

import pytest
import torch
from helpers import PARTS
from minti.checkpoints.finite import PIECE, check_file
from safetensors.torch import load_file, save_file

import minti

BAD = (math.nan, math.inf, -math.inf)
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@pytest.mark.parametrize(("part", "value"), list(zip(PARTS, BAD)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_part_is_refused(folder, part, value, dtype):
    path = folder / part / f"{PARTS[part]}.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[len(tensors) // 2]
    tensors[name].view(-1)[-1] = value
    save_file(tensors, path)
    with pytest.raises(ValueError) as caught:
        minti.StableDiffusion.from_pretrained(folder, dtype=dtype)
    assert str(caught.value) == f"{path}: {name} has numbers that are not finite; fetch the file again, or use another"


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("dtype", FLOATS)
def test_wherever_it_stands(tmp_path, dtype, value):
    """First, last, on both sides of where a piece of the file ends, and behind tensors of other kinds."""
    path, per_piece = tmp_path / "file.safetensors", PIECE // dtype.itemsize
    count = 2 * per_piece + 3
    others = {"a": torch.arange(5), "b": torch.zeros(3), "c": torch.zeros(0), "z": torch.zeros(7, dtype=torch.uint8)}
    for place in (None, 0, per_piece - 1, per_piece, count - 1):
        weight = torch.zeros(count, dtype=dtype)
        if place is not None:
            weight[place] = value
        save_file(others | {"weight": weight}, path, {"dtype": "F32"})
        if place is None:
            check_file(path)
        else:
            with pytest.raises(ValueError, match=r"file\.safetensors: weight has numbers that are not finite"):
                check_file(path)


@pytest.mark.parametrize("dtype", FLOATS)
def test_large_numbers_are_numbers(tmp_path, dtype):
    """The largest that there are, whose sum is none."""
    largest = torch.full((1000,), torch.finfo(dtype).max, dtype=dtype)
    save_file({"weight": largest}, tmp_path / "file.safetensors")
    check_file(tmp_path / "file.safetensors")
