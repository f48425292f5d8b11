"""Model folders in half precision and in shards."""

import json
import re

import diffusers
import pytest
import torch
from helpers import PARTS, assert_same
from safetensors.torch import load_file, save_file

import minti

NETWORK = "diffusion_pytorch_model"


def test_fp16_variant(folder, tiny):
    for part, stem in PARTS.items():
        path = folder / part / f"{stem}.safetensors"
        halves = {k: v.half() if v.is_floating_point() else v for k, v in load_file(path).items()}
        save_file(halves, folder / part / f"{stem}.fp16.safetensors")
        path.unlink()
    model = minti.StableDiffusion.from_pretrained(folder, dtype=None, variant="fp16")
    assert model.dtype == torch.float16
    expected = tiny.unet.conv_in.weight
    assert torch.equal(model.unet.conv_in.weight, expected.half())
    widened = minti.StableDiffusion.from_pretrained(folder, variant="fp16")
    assert torch.equal(widened.unet.conv_in.weight, expected.half().float())
    with pytest.warns(UserWarning, match=r"unet: taking the weights of variant fp16, for there are no others"):
        only = minti.StableDiffusion.from_pretrained(folder)
    assert torch.equal(only.unet.conv_in.weight, expected.half().float())
    other = folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors"
    other.write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"is missing; the folder has \S+fp16\.safetensors, \S+non_ema\.saf"):
        minti.StableDiffusion.from_pretrained(folder)
    other.unlink()
    with pytest.raises(FileNotFoundError, match=r"bf16\.safetensors is missing; the folder has"):
        minti.StableDiffusion.from_pretrained(folder, variant="bf16")


def test_a_folder_of_pickles(folder, tiny):
    """As folders of 2022 have them; diffusers calls the text encoder's pytorch_model.bin."""
    for part, stem in PARTS.items():
        path = folder / part / f"{stem}.safetensors"
        torch.save(load_file(path), folder / part / f"{'pytorch_' * (stem == 'model')}{stem}.bin")
        path.unlink()
    with pytest.warns(UserWarning, match=r"text_encoder: taking pytorch_model\.bin, for there is no model\.saf"):
        model = minti.StableDiffusion.from_pretrained(folder)
    assert_same(model, tiny)
    for part, stem in PARTS.items():  # beside half precision, and with what macOS leaves: full precision it is
        (folder / part / f"{stem}.fp16.safetensors").write_bytes(b"")
        (folder / part / f"._{stem}.bin").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"unet: taking diffusion_pytorch_model\.bin, for there is no"):
        assert_same(minti.StableDiffusion.from_pretrained(folder), tiny)
    (folder / "vae" / "diffusion_pytorch_model.bin").write_text(
        "version https://git-lfs.github.com/spec/v1\n", encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model.bin is a git-lfs pointer"):
        minti.StableDiffusion.from_pretrained(folder)


def test_shards_as_diffusers_writes_them(folder, tiny, tiny_folder):
    unet = diffusers.UNet2DConditionModel.from_pretrained(tiny_folder / "unet")
    (folder / "unet" / f"{NETWORK}.safetensors").unlink()
    unet.save_pretrained(folder / "unet", max_shard_size="500KB")
    index = folder / "unet" / f"{NETWORK}.safetensors.index.json"
    assert len(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())) > 2
    assert_same(minti.StableDiffusion.from_pretrained(folder), tiny)

    shard = sorted((folder / "unet").glob("*-00002-*"))[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=re.escape(f"{shard} is not a whole safetensors file")):
        minti.StableDiffusion.from_pretrained(folder)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(f"{shard} is missing")):
        minti.StableDiffusion.from_pretrained(folder)
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../../elsewhere.safetensors"}}), encoding="utf-8")
    with pytest.raises(ValueError, match="not a file beside it"):
        minti.StableDiffusion.from_pretrained(folder)
