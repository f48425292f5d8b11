"""Model folders whose small files are damaged, or something else altogether."""

from __future__ import annotations

import json
import shutil

import pytest
from fuzzing import DAMAGE, JSON, SCALARS, flipped, inputs, refusal
from hypothesis import example, given
from hypothesis import strategies as st

import minti

SMALL = (
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/tokenizer.json",
)


@pytest.fixture
def model_folder(tiny_folder, tmp_path):
    """A copy of the small model that may be spoilt, and put right again."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def check_model(folder, path) -> None:
    """A model that samples, or a refusal."""
    with refusal(path.parent, "tokenizer", "UNet", "schedule"):
        model = minti.StableDiffusion.from_pretrained(folder)
        steps = min(2, model.scheduler.config.num_train_timesteps)
        assert (
            minti.sample(model, "a cat", num_inference_steps=steps, output="pixels", height=16, width=16)
            .isfinite()
            .all()
        )


@inputs(5)
@given(st.sampled_from(SMALL), st.one_of(DAMAGE, JSON))
@example("unet/config.json", [])
@example("scheduler/scheduler_config.json", {"a\nb": 1, "clip_sample": [float("nan")]})
@example("tokenizer/tokenizer.json", {})
@example("tokenizer/tokenizer_config.json", [1])
def test_a_model_folder_with_damaged_files_samples_or_is_refused(tiny_folder, model_folder, file, damage):
    path, whole = model_folder / file, (tiny_folder / file).read_bytes()
    damaged = isinstance(damage, tuple) and flipped(whole, *damage)
    path.write_bytes(json.dumps(damage).encode() if damaged is False else damaged)
    try:
        check_model(model_folder, path)
    finally:
        path.write_bytes(whole)


SHARDS = st.one_of(
    JSON,
    st.dictionaries(
        st.sampled_from(("conv_in.weight", "conv_in.bias")), st.one_of(SCALARS, st.sampled_from(("../x", ".", "/")))
    ),
)


@inputs(3)
@given(st.one_of(JSON, st.builds(lambda shards: {"weight_map": shards}, SHARDS)))
@example({"weight_map": {"conv_in.weight": 3}})
@example({"weight_map": ["conv_in.weight"]})
@example({"weight_map": {"conv_in.weight": "\x00"}})
@example({"weight_map": {"conv_in.weight": ""}})
def test_an_index_is_followed_or_refused(model_folder, index):
    weights = model_folder / "unet" / "diffusion_pytorch_model.safetensors"
    hidden = weights.rename(weights.with_suffix(".hidden")) if weights.exists() else None
    path = model_folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(json.dumps(index), encoding="utf-8")
    check_model(model_folder, path)
    if hidden is not None:
        hidden.rename(weights)
