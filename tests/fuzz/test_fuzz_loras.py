"""LoRA files: known keys and others, with odd tensors, odd metadata, and damage."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from fuzzing import DAMAGE, JSON, SCALARS, TEXT, flipped, inputs, refusal
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save
from test_fuzz_words import ODD, pickled

import minti

PATH = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
FLAT = f"lora_unet_{PATH.replace('.', '_')}"
ROLES = (".lora.down.weight", ".lora.up.weight", ".lora_A.weight", ".lora_down.weight", ".alpha", ".hada_w1_a", "")
PLACES = (
    f"unet.{PATH}",
    FLAT,
    "unet.mid_block.attentions.0.proj_in",
    "unet.conv_in",
    "lora_te_text_model",
    "text_encoder.",
)
KEYS = st.one_of(st.tuples(st.sampled_from(PLACES), st.sampled_from(ROLES)).map("".join), TEXT)
SHAPES = ((2, 64), (64, 2), (2, 64, 1, 1), (2, 64, 3, 3), (0, 64), (64, 0), (3, 3), ())
TENSORS = st.one_of(
    st.sampled_from(SHAPES).map(torch.ones),
    st.sampled_from(sorted(ODD)).map(lambda name: ODD[name]()),
)
GOOD = {f"unet.{PATH}.lora.down.weight": torch.ones(2, 64), f"unet.{PATH}.lora.up.weight": torch.ones(64, 2)}
NETWORK = ("r", "lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora", "target_modules")
CONFIGS = st.one_of(JSON, st.dictionaries(st.sampled_from(NETWORK).map("unet.{}".format), st.one_of(JSON, SCALARS)))


def check_load(model: minti.StableDiffusion, path: Path) -> None:
    """A LoRA that fits the model, of finite numbers; or a refusal that names the file."""
    with refusal(path):
        lora = minti.load_lora(model, path)
        assert all(parameter.isfinite().all() for parameter in lora.parameters())
        assert all(math.isfinite(lora.scale(pair)) for pair in lora.pairs.values())
        with lora.attached(model):
            pass


@inputs(6)
@given(st.dictionaries(st.one_of(KEYS, SCALARS), st.one_of(TENSORS, SCALARS), max_size=4), st.booleans())
@example({"unet." + PATH + ".lora.down.weight": ODD["quantised"]()}, False)
@example(GOOD | {f"{FLAT}.alpha": ODD["complex"]()}, False)
@example(GOOD | {f"{FLAT}.alpha": ODD["sparse"]()}, False)
@example(GOOD | {f"{FLAT}.alpha": ODD["meta"]()}, False)
@example(GOOD | {f"{FLAT}.alpha": ODD["powers"]()}, False)
@example(GOOD | {f"{FLAT}.alpha": 10**400}, False)
@example(GOOD | {f"{FLAT}.alpha": "2"}, True)
@example(GOOD | {f"{FLAT}.alpha": None}, True)
def test_any_container_is_read_or_refused(opened, tmp_path_factory, content, old):
    path = tmp_path_factory.mktemp("lora") / "lora.pt"
    path.write_bytes(pickled(content, old))
    check_load(opened, path)


@inputs(4)
@given(CONFIGS)
@example({"unet.lora_alpha": 10**400})
@example({"unet.alpha_pattern": {"to_q": True}})
@example({"unet.alpha_pattern": {"to_q": {}}})
@example({"unet.alpha_pattern": None})
def test_any_metadata_is_read_or_refused(opened, tmp_path_factory, config):
    path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    path.write_bytes(save(GOOD, {"lora_adapter_metadata": json.dumps(config)}))
    check_load(opened, path)


@inputs(3)
@given(DAMAGE)
@example(([], 0.5))
@example(([(0, 0)], 1.0))
def test_a_damaged_file_is_read_or_refused(opened, tmp_path_factory, damage):
    path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    path.write_bytes(flipped(save(GOOD), *damage))
    check_load(opened, path)
