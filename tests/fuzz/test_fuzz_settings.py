"""Settings of every type, from Python and from the files of a model folder."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
from fuzzing import DAMAGE, JSON, SCALARS, flipped, inputs, refusal
from hypothesis import example, given
from hypothesis import strategies as st

import minti

NAMES = [field.name for field in dataclasses.fields(minti.TextualInversionConfig)]
ODD = st.one_of(
    JSON,
    st.sampled_from(
        [np.int64(3), np.float32(0.1), np.array([1, 2]), 3 + 0j, b"cat", {1}, object(), "cosine", "restore"]
    ),
)


@inputs(8)
@given(st.dictionaries(st.sampled_from(NAMES), ODD, min_size=1, max_size=3))
@example({"steps": "12"})
@example({"steps": True})
@example({"steps": 1.5})
@example({"seed": 0.5})
@example({"learning_rate": "0.1"})
@example({"learning_rate": float("nan")})
@example({"learning_rate": 10**400})
@example({"num_vectors": 10**9})
@example({"steps": 10**5000})
@example({"templates": [3]})
@example({"templates": 3})
@example({"templates": "a\nb"})
@example({"placeholder_token": None})
@example({"max_row_norm": 3 + 0j})
def test_a_config_is_made_or_refused(options):
    """What is made can be counted with, and written into a checkpoint."""
    with refusal(*options, "template"):
        config = minti.TextualInversionConfig(**options)
        json.dumps(dataclasses.asdict(config))
        assert 1 <= config.last_step <= 10**9
        numbers = [value for value in dataclasses.asdict(config).values() if isinstance(value, float)]
        assert np.isfinite(numbers).all()


FILES = {
    "unet/config.json": """sample_size in_channels out_channels block_out_channels layers_per_block down_block_types
        up_block_types cross_attention_dim attention_head_dim norm_num_groups norm_eps flip_sin_to_cos freq_shift
        act_fn""",
    "vae/config.json": """in_channels out_channels latent_channels block_out_channels layers_per_block norm_num_groups
        scaling_factor force_upcast""",
    "text_encoder/config.json": """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
        max_position_embeddings hidden_act layer_norm_eps bos_token_id eos_token_id attn_implementation auto_map
        torch_dtype model_type quantization_config""",
    "scheduler/scheduler_config.json": """num_train_timesteps beta_start beta_end beta_schedule prediction_type
        timestep_spacing steps_offset set_alpha_to_one rescale_betas_zero_snr""",
    "tokenizer/tokenizer_config.json": "model_max_length pad_token tokenizer_class auto_map added_tokens_decoder",
    "defaults.json": "half_precision guidance_scale batch_size templates prompts",
}
VALUES = st.one_of(
    JSON, st.lists(st.integers(-1, 70), min_size=1, max_size=4), st.sampled_from([2**20, 64, 16, 8, "gelu"])
)
CHANGES = st.sampled_from(sorted(FILES)).flatmap(
    lambda file: st.tuples(
        st.just(file), st.dictionaries(st.sampled_from(FILES[file].split()), VALUES, min_size=1, max_size=2)
    )
)


@pytest.fixture
def model_folder(tiny_folder, tmp_path):
    """A copy of the small model that may be spoilt, and put right again."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def check_model(folder, path) -> None:
    """A model that draws, or a refusal."""
    with refusal(path.parent, "tokenizer", "UNet", "schedule"):
        model = minti.StableDiffusion.from_pretrained(folder)
        steps = min(2, model.scheduler.config.num_train_timesteps)
        assert (
            minti.sample(model, "a cat", num_inference_steps=steps, output="pixels", height=16, width=16)
            .isfinite()
            .all()
        )


@inputs(8)
@given(CHANGES, st.lists(st.sampled_from(FILES["unet/config.json"].split()), max_size=2))
@example(("unet/config.json", {"layers_per_block": 10**9}), [])
@example(("unet/config.json", {"norm_num_groups": 0}), [])
@example(("unet/config.json", {"attention_head_dim": 5}), [])
@example(("unet/config.json", {"block_out_channels": []}), [])
@example(("vae/config.json", {"scaling_factor": 0}), [])
@example(("vae/config.json", {"norm_num_groups": 3}), [])
@example(("text_encoder/config.json", {"attn_implementation": "someone/kernel"}), [])
@example(("text_encoder/config.json", {"hidden_act": "nothing"}), [])
@example(("text_encoder/config.json", {"num_hidden_layers": 10**9}), [])
@example(("scheduler/scheduler_config.json", {"num_train_timesteps": 10**12}), [])
@example(("scheduler/scheduler_config.json", {"beta_start": -1}), [])
@example(("scheduler/scheduler_config.json", {"beta_end": 0.999, "num_train_timesteps": 90_000}), [])
@example(("scheduler/scheduler_config.json", {"steps_offset": 1000}), [])
@example(("tokenizer/tokenizer_config.json", {"model_max_length": 10**30}), [])
@example(("tokenizer/tokenizer_config.json", {"model_max_length": "long"}), [])
@example(("defaults.json", {"batch_size": 0}), [])
@example(("defaults.json", {"prompts": ["a cat"]}), [])
def test_a_model_folder_with_odd_configs_draws_or_is_refused(tiny_folder, model_folder, change, missing):
    file, values = change
    path, original = model_folder / file, tiny_folder / file
    config = json.loads(original.read_text()) if original.is_file() else {}
    path.write_text(json.dumps({key: value for key, value in (config | values).items() if key not in missing}))
    try:
        check_model(model_folder, path)
    finally:
        path.unlink()
        if original.is_file():
            shutil.copy(original, path)


SMALL = [name for name in FILES if name != "defaults.json"] + ["tokenizer/tokenizer.json"]


@inputs(5)
@given(st.sampled_from(SMALL), st.one_of(DAMAGE, JSON))
@example("unet/config.json", [])
@example("scheduler/scheduler_config.json", {"a\nb": 1, "clip_sample": [float("nan")]})
@example("tokenizer/tokenizer.json", {})
@example("tokenizer/tokenizer_config.json", [1])
def test_a_model_folder_with_damaged_files_draws_or_is_refused(tiny_folder, model_folder, file, damage):
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
    path.write_text(json.dumps(index))
    check_model(model_folder, path)
    if hidden is not None:
        hidden.rename(weights)
