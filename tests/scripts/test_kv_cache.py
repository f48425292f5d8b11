"""Keys and values of the prompt, kept over a run: the same bits, fewer products, and never a stale prompt."""

import importlib
from pathlib import Path

import pytest
import torch
from helpers import seeded

import minti
from minti.adapters.ip_adapter import cross_attentions

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.fast


@pytest.fixture
def kv(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("kv_cache")


def test_images_are_the_same_bit_for_bit_and_every_prompt_is_computed_once(tiny, kv):
    """Two prompts in turn, guided: four contexts in all, whatever the number of steps."""
    options = {"num_inference_steps": 4, "sampler": "ddim", "guidance_scale": 5.0, "output": "latents"}
    draw = lambda prompt: minti.sample(tiny, prompt, generator=seeded(), **options)  # noqa: E731
    expected, layer, calls = [draw("a cat"), draw("a dog")], cross_attentions(tiny.unet)[0].to_k, []
    plain = layer.forward
    layer.forward = lambda x: calls.append(x) or plain(x)
    with kv.KVCache().attached(tiny):
        assert torch.equal(draw("a cat"), expected[0]) and torch.equal(draw("a dog"), expected[1])
    assert len(calls) == 2
    del layer.forward
    assert torch.equal(draw("a cat"), expected[0])


def test_a_prompt_that_learns_gets_its_whole_gradient(tiny, kv):
    """A loss of two forward passes with the same context: as without the cache."""
    latents, t = torch.randn(1, 4, 8, 8, generator=seeded()), torch.tensor([500])
    gradients = []
    for adapter in (kv.KVCache(), None):
        context = tiny.encode_prompt("a cat").detach().requires_grad_(True)
        both = lambda context=context: sum(tiny.unet(x, t, context).square().mean() for x in (latents, -latents))  # noqa: E731
        if adapter:
            with adapter.attached(tiny):
                tiny.unet(latents, t, context.detach())
                loss = both()
        else:
            loss = both()
        gradients.append(torch.autograd.grad(loss, context)[0])
    assert torch.equal(*gradients)


def test_the_multiplications_are_those_of_the_shapes(tiny, kv):
    """To keys and values: 16 tokens of 48 numbers, to each layer's width, twice."""
    with torch.no_grad():
        found = kv.multiplications(tiny, tiny.encode_prompt("a cat"))
    widths = [layer.to_k.out_features for layer in cross_attentions(tiny.unet)]
    assert found["prompt"] == 2 * 16 * 48 * sum(widths)
    assert 0 < found["prompt"] < 0.1 * found["all"]
