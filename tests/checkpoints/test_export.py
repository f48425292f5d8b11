"""A model that was written as a folder is the same to minti and to diffusers."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from helpers import assert_same, seeded

import minti


def test_a_folder_is_the_model(tiny, tmp_path):
    """Changed weights arrive; a word that was added does not, and its places in the vocabulary go with it."""
    with torch.no_grad():
        tiny.unet.conv_in.weight += 0.1
    expected = {key: value.clone() for key, value in tiny.unet.state_dict().items()}
    context = tiny.encode_prompt("a cat")
    tiny.add_word("<a>", torch.zeros(2, 48))
    tiny.save_pretrained(tmp_path / "model")
    again = minti.StableDiffusion.from_pretrained(tmp_path / "model")
    assert all(torch.equal(value, expected[key]) for key, value in again.unet.state_dict().items())
    assert torch.equal(again.encode_prompt("a cat"), context)
    assert (again.scheduler.config, again.defaults) == (tiny.scheduler.config, tiny.defaults)
    assert again.tokenizer.tokenize("<a>") != ["<a>"]
    with pytest.raises(OSError, match="is not empty; remove it"):
        tiny.save_pretrained(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_diffusers_opens_it(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "model")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 3, "generator": seeded(), "height": 16, "width": 16}
    theirs = pipe("a red cat", guidance_scale=3.0, output_type="latent", **options).images
    options |= {"generator": seeded()}
    ours = minti.sample(tiny, "a red cat", guidance_scale=3.0, sampler="pndm", output="latents", **options)
    assert torch.equal(ours, theirs)


def test_the_toybox_survives_it(tmp_path):
    toybox = minti.StableDiffusion.from_pretrained()
    toybox.save_pretrained(tmp_path / "toybox")
    assert_same(minti.StableDiffusion.from_pretrained(tmp_path / "toybox"), toybox)
