"""Safetensors files whose headers and bodies are made up: as weights, and as learned words."""

from __future__ import annotations

import os

import pytest
import torch
from files import BODIES, HEADERS, LENGTHS, safetensors
from fuzzing import DAMAGE, bounded, check_message, flipped, inputs, refusal
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save

import minti
from minti.embeddings import read_embeddings
from minti.formats.tensors import read_tensors

RAW = st.one_of(HEADERS, st.binary(max_size=60))
ROWS = {"dtype": "F32", "shape": [1, 48], "data_offsets": [0, 192]}


@inputs(7)
@given(RAW, BODIES, LENGTHS, st.sampled_from((None, torch.float32)))
@example({"a": ROWS | {"data_offsets": [192, 0]}}, b"\0" * 192, None, None)
@example({"a": ROWS | {"data_offsets": [-192, 0]}}, b"\0" * 192, None, None)
@example({"a": ROWS, "b": ROWS}, b"\0" * 192, None, None)
@example({"a": ROWS | {"shape": [2**40, 2**40]}}, b"\0" * 192, None, None)
@example({"a": ROWS | {"dtype": "F4", "data_offsets": [0, 24]}}, b"\0" * 24, None, torch.float32)
@example({"a": ROWS | {"dtype": "F6_E2M3", "data_offsets": [0, 36]}}, b"\0" * 36, None, torch.float32)
@example(b"[" * 100_000, b"", None, None)
@example({"a\nb": ROWS}, b"", None, None)
def test_weights_are_read_or_refused(folder, header, body, length, dtype):
    path = folder / "weights.safetensors"
    path.write_bytes(safetensors(header, body, length))
    with refusal(path):
        for tensor in read_tensors(path, dtype).values():
            assert tensor.nbytes <= len(body) * (8 if dtype else 1)


@inputs(7)
@given(st.sampled_from((None, "<mine>")), RAW, BODIES, LENGTHS)
@example(None, {"<word>": ROWS}, b"\xff" * 192, None)
@example(None, {"<w\n>": ROWS}, b"\xff" * 192, None)
@example(None, {"": ROWS}, b"\x3f" * 192, None)
@example("<mine>", {"\x1b[31m": ROWS | {"dtype": "I32"}}, b"\x3f" * 192, None)
@example(None, {"<w>": ROWS | {"shape": [0, 48], "data_offsets": [0, 0]}}, b"", None)
def test_words_are_read_or_refused_without_a_trace(fresh, folder, name, header, body, length):
    path, model = folder / "word.safetensors", fresh()
    path.write_bytes(safetensors(header, body, length))
    size = len(model.tokenizer)
    with refusal(path):
        try:
            words = minti.load_embeddings(model, path, name)
        except ValueError:
            assert len(model.tokenizer) == size
            raise
        assert model.encode_prompt(words).isfinite().all()


@inputs(5)
@given(DAMAGE, st.sampled_from((torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn)))
@example(([], 1.0), torch.float8_e4m3fn)
def test_a_damaged_file_of_words_is_read_or_refused(folder, damage, dtype):
    path = folder / "word.safetensors"
    path.write_bytes(flipped(save({"<a>": torch.ones(2, 48).to(dtype), "<b>": torch.zeros(1, 48).to(dtype)}), *damage))
    with refusal(path):
        assert all(rows.isfinite().all() and rows.shape[1] == 48 for rows in read_embeddings(path).values())


def test_a_header_of_4_gigabytes_is_refused_for_its_size(folder):
    """A sparse file: as long as it says, but with nothing in it."""
    path = folder / "weights.safetensors"
    path.write_bytes(safetensors(b"{}", b"", 2**32))
    for size in (None, 2**32 + 8):
        if size is not None:
            os.truncate(path, size)
        with bounded(), pytest.raises(ValueError, match="header") as caught:
            read_tensors(path)
        check_message(caught.value, path)
        assert "large" in str(caught.value).lower() or "long" in str(caught.value)
