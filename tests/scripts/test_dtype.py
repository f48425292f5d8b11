"""`--dtype auto`: half precision where the machine multiplies it and the model is large enough to be faster for it."""

from support.command_line import arguments, automatic_dtype, load

import argparse

import pytest
import torch

import minti

NO = {"avx512_bf16": False, "amx_bf16": False}


@pytest.mark.parametrize(
    ("able", "expected"),
    [
        (NO, torch.float32),
        (NO | {"avx512_bf16": True}, torch.bfloat16),
        (NO | {"amx_bf16": True}, torch.bfloat16),
        ({"architecture": "aarch64"}, torch.float32),
    ],
)
def test_a_cpu_that_multiplies_bfloat16_takes_it(monkeypatch, able, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert automatic_dtype("cpu") == expected
    assert automatic_dtype("mps") == torch.float32


@pytest.mark.parametrize(
    ("cuda", "mps", "rank", "expected"),
    [
        (True, False, None, "cuda"),
        (True, True, None, "cuda"),
        (False, True, None, "mps"),
        (False, True, "0", "cpu"),
        (False, False, None, "cpu"),
    ],
)
def test_a_gpu_is_the_default(monkeypatch, cuda, mps, rank, expected):
    """Of NVIDIA or of Apple; which torchrun's processes cannot share."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert arguments("Tests.", None).parse_args([]).device == expected


def test_what_torch_does_not_tell_is_no(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert automatic_dtype("cpu") == torch.float32


def test_the_toybox_stays_in_float32(monkeypatch, tiny_folder):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: NO | {"amx_bf16": True}, raising=False)
    for folder, dtype, expected in (
        (minti.TOYBOX, "auto", torch.float32),
        (minti.TOYBOX, "bfloat16", torch.bfloat16),
        (tiny_folder, "auto", torch.bfloat16),
        (tiny_folder, "float32", torch.float32),
    ):
        args = argparse.Namespace(model=str(folder), device="cpu", dtype=dtype, quiet=True, guidance_scale=None)
        assert load(args).dtype == expected
