"""Model folders: what loads, what is refused, and how it is said."""

import json
import re
import shutil

import diffusers
import pytest
import torch
from helpers import assert_same
from safetensors.torch import load_file, save_file

import minti
from minti.formats.strict import load_tokenizer

NETWORK = "diffusion_pytorch_model.safetensors"


def state(model):
    """Every tensor of a model, under its part's name."""
    return {
        f"{part}.{key}": value
        for part in ("unet", "vae", "text_encoder")
        for key, value in getattr(model, part).state_dict().items()
    }


def edit(path, change):
    """Rewrites a safetensors file."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_the_release_s_older_names_load(folder, tiny):
    """SD v1.4 on disk: the VAE's attention named as in 2022, `text_model.`, `position_ids`, no scaling factor."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename_vae(tensors):
        for key in list(tensors):
            if match := re.search(r"attentions\.0\.(to_out\.0|to_[qkv])\.", key):
                tensors[key.replace(match[1], old[match[1]])] = tensors.pop(key)

    def rename_text(tensors):
        for key in list(tensors):
            tensors["text_model." + key.removeprefix("text_model.")] = tensors.pop(key)
        tensors["text_model.embeddings.position_ids"] = torch.arange(16)[None]

    edit(folder / "vae" / NETWORK, rename_vae)
    edit(folder / "text_encoder/model.safetensors", rename_text)
    config = json.loads((folder / "vae/config.json").read_text(encoding="utf-8"))
    del config["scaling_factor"]
    (folder / "vae/config.json").write_text(json.dumps(config), encoding="utf-8")

    model = minti.StableDiffusion.from_pretrained(folder)
    expected = state(tiny)
    assert state(model).keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in state(model).items())
    assert model.vae.config.scaling_factor == 0.18215
    assert torch.equal(model.encode_prompt("a cat"), tiny.encode_prompt("a cat"))


@pytest.mark.parametrize("level", ["", "text_model."])
def test_the_text_encoder_opens_with_both_kinds_of_names(folder, pipeline, level):
    """With the level `text_model.` and without, whichever kind the installed transformers uses for its own."""

    def rename(tensors):
        for key in list(tensors):
            tensors[level + key.removeprefix("text_model.")] = tensors.pop(key)

    edit(folder / "text_encoder/model.safetensors", rename)
    ours, theirs = minti.StableDiffusion.from_pretrained(folder).text_encoder, pipeline.text_encoder
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in ours.state_dict().items())
    ids = torch.arange(16)[None]
    assert torch.equal(ours(ids).last_hidden_state, theirs(ids).last_hidden_state)


def test_configs_with_a_byte_order_mark(folder, tiny):
    """As editors of Windows save them."""
    for path in [*folder.glob("*/config.json"), folder / "scheduler" / "scheduler_config.json"]:
        path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert_same(minti.StableDiffusion.from_pretrained(folder), tiny)


def test_dtype_and_frozen_and_nothing_left_on_meta(tiny_folder):
    model = minti.StableDiffusion.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    for part in (model.unet, model.vae, model.text_encoder):
        assert not part.training
        for tensor in (*part.parameters(), *part.buffers()):
            assert tensor.device.type == "cpu"
            assert not tensor.requires_grad
        assert {p.dtype for p in part.parameters()} == {torch.bfloat16}
    assert model.dtype == torch.bfloat16
    assert torch.isfinite(minti.sample(model, "a cat", num_inference_steps=2, output="latents")).all()


@pytest.mark.parametrize(("part", "file"), [("unet", NETWORK), ("vae", NETWORK), ("text_encoder", "model.safetensors")])
def test_wrong_tensors_are_named(folder, part, file):
    path, key = folder / part / file, None
    whole = path.read_bytes()

    def drop(tensors):
        nonlocal key
        key = min(tensors)
        del tensors[key]

    def widen(tensors):
        tensors[key] = torch.zeros(*tensors[key].shape, 2)

    for change, message in (
        (drop, "lacks tensor"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "unexpected tensor extra"),
        (widen, "has shape"),
    ):
        path.write_bytes(whole)
        edit(path, change)
        with pytest.raises(ValueError, match=message) as caught:
            minti.StableDiffusion.from_pretrained(folder)
        assert str(path) in str(caught.value)
        assert (key in str(caught.value)) or "extra" in str(caught.value)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(folder, part):
    shutil.rmtree(folder / part)
    with pytest.raises(FileNotFoundError, match=f"has no {part}"):
        minti.StableDiffusion.from_pretrained(folder)


@pytest.mark.parametrize(
    "file", ["unet/config.json", f"unet/{NETWORK}", "text_encoder/model.safetensors", "tokenizer/tokenizer.json"]
)
def test_a_missing_file_is_named(folder, file):
    (folder / file).unlink()
    with pytest.raises(FileNotFoundError, match="is missing"):
        minti.StableDiffusion.from_pretrained(folder)


def test_a_tokenizer_without_a_length_is_named(tmp_path):
    """Of vocab.json and merges.txt alone transformers makes a tokenizer of 10^30 tokens."""
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(minti.TOYBOX / "tokenizer" / name, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"tokenizer_config\.json with a model_max_length is missing"):
        load_tokenizer(tmp_path)


def test_damaged_files_are_named(folder):
    path = folder / "unet" / NETWORK
    whole = path.read_bytes()
    for damaged in (whole[:-1000], whole[:5], b"", b"\xff" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            minti.StableDiffusion.from_pretrained(folder)
    path.write_bytes(whole)
    (folder / "vae/config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"vae/config\.json is not valid JSON"):
        minti.StableDiffusion.from_pretrained(folder)


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="is neither a folder, nor a file, nor an id on the hub"):
        minti.StableDiffusion.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("unet", {"use_linear_projection": True}, "use_linear_projection = True"),  # SD v2
        ("unet", {"attention_head_dim": [5, 10, 20, 20]}, r"attention_head_dim = \(5, 10, 20, 20\)"),
        ("unet", {"addition_embed_type": "text_time"}, "addition_embed_type = 'text_time'"),  # SDXL
        ("unet", {"in_channels": 9}, r"conv_in\.weight has shape .* were expected"),
        ("vae", {"latent_channels": 16}, "were expected"),
        ("text_encoder", {"hidden_size": 96}, "were expected"),
    ],
)
def test_other_architectures_are_refused_by_name(folder, part, change, message):
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        minti.StableDiffusion.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_an_inpainting_model_is_refused(folder, tiny_folder):
    config = dict(diffusers.UNet2DConditionModel.load_config(tiny_folder / "unet")) | {"in_channels": 9}
    diffusers.UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    with pytest.raises(ValueError, match=r"has \(9, 4\) channels .* not models made for inpainting"):
        minti.StableDiffusion.from_pretrained(folder)
