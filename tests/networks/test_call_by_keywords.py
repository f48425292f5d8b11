"""The UNet's inputs reach the hooks of adapters whether they are given by position or by keyword."""

import pytest
import torch
from helpers import random_lora, seeded

from minti.adapters.controlnet import ControlNet
from minti.editing.attention_maps import AttentionMaps
from minti.guidance.perturbed_attention import PerturbedAttention
from minti.guidance.self_attention_guidance import SelfAttentionGuidance
from minti.speed.deep_cache import DeepCache

T = 600
CALLS = {
    "by keyword": lambda unet, x, t, c: unet(noisy_latents=x, timesteps=t, context=c),
    "in another order": lambda unet, x, t, c: unet(context=c, timesteps=t, noisy_latents=x),
    "mixed": lambda unet, x, t, c: unet(x, t, context=c),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def by_position(unet, x, t, c):
    return unet(x, t, c)


def question(model):
    x = torch.randn(2, 4, 8, 8, generator=seeded())
    return x, torch.full((2,), T), model.encode_prompt(["a cat", "the dog"])


def control(model):
    adapter = ControlNet.beside(model, seeded())
    for zero in (*adapter.network.controlnet_down_blocks, adapter.network.controlnet_mid_block):
        torch.nn.init.normal_(zero.weight, std=0.1, generator=seeded(1))
    adapter.hint = torch.rand(1, 3, 16, 16, generator=seeded(2))
    return adapter


ADAPTERS = {
    "LoRA": random_lora,
    "ControlNet": control,
    "DeepCache": lambda model: DeepCache(2),
    "attention maps": lambda model: AttentionMaps(model, ["a cat", "the dog"]),
    "perturbed attention": lambda model: PerturbedAttention(3.0),
    "self-attention guidance": lambda model: SelfAttentionGuidance(0.75),
}


@each_call
@pytest.mark.parametrize("make", ADAPTERS.values(), ids=ADAPTERS)
@torch.no_grad()
def test_an_attached_adapter_acts_as_by_position(tiny, make, call):
    asked = question(tiny)
    alone = tiny.unet(*asked)
    answers = []
    for way in (by_position, call):
        adapter = make(tiny)
        with adapter.attached(tiny):
            predict = lambda latents, t, way=way: way(tiny.unet, latents, *asked[1:])  # noqa: E731
            answers.append(getattr(adapter, "guidance", lambda predict: predict)(predict)(asked[0], T))
    assert answers[1].shape == alone.shape
    assert torch.equal(*answers)
    changes = not isinstance(adapter, DeepCache | AttentionMaps)
    assert torch.equal(answers[1], alone) != changes


@each_call
@torch.no_grad()
def test_perturbed_attention_by_its_formula(tiny, call):
    """output + s (output - perturbed), where perturbed attention keeps every position's own value."""
    asked = question(tiny)
    output = tiny.unet(*asked)
    layers = [layer for name, layer in tiny.unet.named_modules() if name.endswith("attn1") and "mid_block" in name]
    assert layers
    for layer in layers:
        layer.attend = lambda q, k, v: v
    perturbed = tiny.unet(*asked)
    for layer in layers:
        del layer.attend
    adapter = PerturbedAttention(3.0)
    with adapter.attached(tiny):
        predict = lambda latents, t: call(tiny.unet, latents, *asked[1:])  # noqa: E731
        got = adapter.guidance(predict)(asked[0], T)
    torch.testing.assert_close(got, output + 3.0 * (output - perturbed), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(got, output, atol=1e-2)
