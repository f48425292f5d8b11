"""A weight that is NaN or infinite: nothing is sampled, encoded or learned with it, and one line names it."""

import itertools
import math
import re

import pytest
import torch
from helpers import PARTS, pictures
from safetensors.torch import load_file, save_file

import minti
from minti.runs.checks import not_finite

BAD = (math.nan, math.inf, -math.inf)
USED = {"unet": "up_blocks.1", "vae": "decoder.up_blocks", "text_encoder": "layers.1.mlp"}


def spoil(folder, part, value, dtype=torch.float32, among=""):
    """Writes a part's weights in a dtype, one number of them spoilt; returns the tensor's name."""
    path = folder / part / f"{PARTS[part]}.safetensors"
    tensors = {key: tensor.to(dtype) for key, tensor in load_file(path).items()}
    name = max(key for key in tensors if among in key and key.endswith("weight"))
    tensors[name].view(-1)[-1] = value
    save_file(tensors, path)
    return name


def assert_refused(run, culprit):
    with pytest.raises(ValueError, match=r"numbers that are not finite: so has .*; fetch the file again") as caught:
        run()
    assert f"{culprit};" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "dtypes", list(itertools.pairwise((torch.float32, torch.float32, torch.float16, torch.bfloat16)))
)
def test_nothing_is_sampled(folder, dtypes, part, value):
    """Whichever dtype the model has, and the file."""
    dtype, kept = dtypes
    name = spoil(folder, part, value, kept, among=USED[part])
    model = minti.StableDiffusion.from_pretrained(folder, dtype=dtype)
    assert re.fullmatch(f"{part}: (text_model.)?{re.escape(name.removeprefix('text_model.'))}", not_finite(model))
    assert_refused(lambda: minti.sample(model, "a cat", num_inference_steps=2), not_finite(model))


@pytest.mark.parametrize("value", BAD)
def test_nothing_is_encoded(folder, value):
    name = spoil(folder, "vae", value, among="encoder.conv_in")
    model = minti.StableDiffusion.from_pretrained(folder)
    assert_refused(lambda: model.encode(pictures(1)), f"vae: {name}")


def test_what_is_not_asked_may_hold_anything(folder, tiny):
    """The encoder while an image is sampled, and the embedding vector of a token that no prompt has."""
    spoil(folder, "vae", math.nan, among="encoder.conv_in")
    spoil(folder, "text_encoder", math.nan, among="token_embedding")
    model = minti.StableDiffusion.from_pretrained(folder)
    embedding = model.text_encoder.get_input_embeddings().weight
    embedding[-1], embedding[model.tokenizer.convert_tokens_to_ids("dog</w>")] = embedding[0], math.inf
    options = {"num_inference_steps": 2, "output": "pixels", "latents": torch.zeros(1, 4, 8, 8), "sampler": "ddim"}
    was = tiny.text_encoder.get_input_embeddings().weight
    was[-1] = was[0]
    assert torch.equal(minti.sample(model, "a cat", **options), minti.sample(tiny, "a cat", **options))
    assert_refused(lambda: minti.sample(model, "a dog", **options), "vae: encoder.conv_in.weight")


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize(
    ("part", "among"),
    [
        ("unet", "attn1.to_k."),
        ("unet", "attn2.to_q."),
        ("text_encoder", "layers.1.self_attn.q_proj.bias"),
        ("text_encoder", "layers.0.self_attn.k_proj.weight"),
        ("vae", "attentions.0.to_k.bias"),
        ("vae", "quant_conv.bias"),
    ],
)
def test_a_weight_that_no_result_would_show_is_refused_when_loaded(tiny_folder, folder, part, among, value):
    """Scores of NaN or minus infinity are masked ones to a fused kernel, and log-variances are clamped: these weights
    are looked at themselves, each of them."""
    path = folder / part / f"{PARTS[part]}.safetensors"
    names = [key for key in load_file(path) if re.search(rf"\b{among}", key)]
    assert names
    for place, name in enumerate(names):
        tensors = load_file(tiny_folder / part / path.name)
        tensors[name].view(-1)[-(place % 2)] = value
        save_file(tensors, path)
        with pytest.raises(ValueError, match="numbers that are not finite; fetch the file again") as caught:
            minti.StableDiffusion.from_pretrained(folder)
        assert str(path) in str(caught.value) and name.removeprefix("text_model.") in str(caught.value)
        assert "\n" not in str(caught.value)


def test_finite_weights_may_overflow(tiny):
    """Then the line says so instead."""
    assert not_finite(tiny) is None
    tiny.vae.decoder.conv_in.weight.fill_(3e38)
    tiny.unet.conv_out.bias.fill_(3e38)  # the largest numbers are numbers, though their sum is none
    assert not_finite(tiny) is None
    with pytest.raises(ValueError, match="the images have numbers that are not finite: the weights are finite, so"):
        tiny.decode(torch.ones(1, 4, 8, 8))
    with pytest.raises(
        ValueError, match=r"overflowed \(guidance_scale 9, .*\); try a lower guidance scale, or bfloat16"
    ):
        minti.sample(tiny, "a cat", num_inference_steps=2, guidance_scale=9)
