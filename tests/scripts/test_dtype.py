"""`--dtype auto`: half precision where the machine multiplies it and the model is large enough to be faster for it."""

from support.command_line import automatic_dtype, load

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
