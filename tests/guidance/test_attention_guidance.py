"""Perturbed-attention and self-attention guidance equal diffusers', and are detached without a trace."""

from contextlib import ExitStack

import diffusers
import pytest
import torch
from diffusers import StableDiffusionSAGPipeline  # wherever a version keeps it
from helpers import PROMPTS, seeded

import minti
from minti.adapters.controlnet import ControlNet
from minti.guidance.conditions import Conditions
from minti.guidance.perturbed_attention import PerturbedAttention
from minti.guidance.self_attention_guidance import SelfAttentionGuidance, attended, blurred_where
from minti.layers import Attention


def drawn(model, adapter, **options):
    options = {"num_inference_steps": 5, "output": "latents", "generator": seeded()} | options
    with adapter.attached(model):
        return minti.sample(model, PROMPTS, guidance=adapter.guidance, **options)


def theirs(kind, pipeline, **options):
    pipe = kind(**pipeline.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe(PROMPTS, generator=seeded(), num_inference_steps=5, output_type="latent", **options).images


@pytest.mark.parametrize("guidance_scale", [7.5, 1])
def test_perturbed_attention_equals_the_pipeline(tiny, pipeline, guidance_scale):
    options = {"guidance_scale": guidance_scale}
    expected = theirs(diffusers.StableDiffusionPAGPipeline, pipeline, pag_scale=3.0, **options)
    got = drawn(tiny, PerturbedAttention(3.0), **options)
    assert torch.equal(got, expected)
    assert not torch.allclose(got, drawn(tiny, PerturbedAttention(0.0), **options), atol=1e-2)


def test_a_strength_that_falls_equals_the_pipeline_s(tiny, pipeline):
    expected = theirs(diffusers.StableDiffusionPAGPipeline, pipeline, pag_scale=3.0, pag_adaptive_scale=0.004)
    got = drawn(tiny, PerturbedAttention(lambda t: max(0, 3.0 - 0.004 * (1000 - t))))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("guidance_scale", [7.5, 1])
def test_self_attention_guidance_equals_the_pipeline(tiny, pipeline, guidance_scale):
    """To rounding: theirs replaces the middle's fused attention, ours computes the map beside it."""
    options = {"guidance_scale": guidance_scale}
    expected = theirs(StableDiffusionSAGPipeline, pipeline, sag_scale=0.75, **options)
    got = drawn(tiny, SelfAttentionGuidance(0.75), **options)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert not torch.allclose(got, drawn(tiny, SelfAttentionGuidance(0.0), **options), atol=1e-2)


@pytest.mark.parametrize("adapter", [PerturbedAttention, SelfAttentionGuidance])
def test_without_strength_or_detached_an_image_is_as_before(tiny, adapter):
    options = {"num_inference_steps": 3, "output": "latents"}
    plain = minti.sample(tiny, PROMPTS, generator=seeded(), **options)
    assert torch.equal(drawn(tiny, adapter(0.0), **options), plain)
    drawn(tiny, adapter(1.0), **options)
    assert torch.equal(minti.sample(tiny, PROMPTS, generator=seeded(), **options), plain)


def test_what_wraps_the_same_attention_is_detached_in_any_order(tiny):
    first, second = ExitStack(), ExitStack()
    first.enter_context(PerturbedAttention(1.0, layers="").attached(tiny))
    second.enter_context(SelfAttentionGuidance(1.0).attached(tiny))
    first.close()
    layers = {name: layer for name, layer in tiny.unet.named_modules() if isinstance(layer, Attention)}
    assert [name for name, layer in layers.items() if layer.around] == [
        "mid_block.attentions.0.transformer_blocks.0.attn1"
    ]
    second.close()
    assert not [name for name, layer in layers.items() if layer.around or "attend" in vars(layer)]


@pytest.mark.parametrize("adapter", [PerturbedAttention, SelfAttentionGuidance])
def test_a_controlnet_may_be_attached_before(tiny, adapter):
    """A fresh ControlNet adds zeros: the images are those without it."""
    alone, control = drawn(tiny, adapter(1.0)), ControlNet.beside(tiny, seeded())
    control.hint = torch.rand(2, 3, 16, 16, generator=seeded())
    with control.attached(tiny):
        assert torch.equal(drawn(tiny, adapter(1.0)), alone)


def test_what_is_attended_to_is_blurred_and_nothing_else():
    k = torch.zeros(1, 2, 16, 3)
    k[:, :, 5] = 9  # all look at one place
    assert attended(torch.ones(1, 2, 16, 3), k).nonzero().tolist() == [[0, 5]]
    latents, mask = torch.randn(1, 4, 8, 8, generator=seeded()), torch.zeros(1, 1, 8, 8)
    mask[..., 2:4, 2:4] = 1
    changed = blurred_where(latents, mask) != latents
    assert torch.equal(changed, mask.bool().expand_as(changed))
    torch.testing.assert_close(blurred_where(torch.ones_like(latents), mask), torch.ones_like(latents))


def test_guidance_may_vary_over_the_steps(tiny):
    """A function that is 1 outside an interval is the guidance interval; one that is constant is its number."""
    draw = lambda **options: minti.sample(  # noqa: E731
        tiny, PROMPTS, generator=seeded(), num_inference_steps=5, output="latents", **options
    )
    assert torch.equal(draw(guidance_scale=lambda t: 7.5), draw(guidance_scale=7.5))
    got = draw(guidance_scale=lambda t: 5.0 if 300 <= t <= 700 else 1.0)
    torch.testing.assert_close(
        got, draw(guidance_scale=5.0, cfg=Conditions(tiny, interval=(300, 700))), rtol=1e-4, atol=1e-4
    )


def test_what_cannot_be_is_said_in_one_line(tiny):
    with pytest.raises(ValueError, match="no self-attention of the UNet has 'nowhere'"):
        drawn(tiny, PerturbedAttention(1.0, layers="nowhere"))
    for adapter in (PerturbedAttention, SelfAttentionGuidance):
        with pytest.raises(ValueError, match="= nan; expected a number"):
            drawn(tiny, adapter(float("nan")))
    with pytest.raises(ValueError, match="= inf; expected a number"):
        minti.sample(tiny, PROMPTS, guidance_scale=lambda t: float("inf"), num_inference_steps=2)
    with pytest.raises(ValueError, match="too small to blur"):
        drawn(tiny, SelfAttentionGuidance(1.0), height=8, width=8)
