"""Attention maps (DAAM): a word's cross-attention over the image."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor
from helpers import seeded

import minti
from minti.editing.attention_maps import AttentionMaps, feature_size
from minti.guidance.attention import attention_weights
from toy_measures import share_inside

PROMPTS = ["a red cat", "the dog in a red style"]
OPTIONS = {"num_inference_steps": 2, "sampler": "ddim", "output": "latents", "guidance_scale": 3.0}


class Recording(AttnProcessor):
    """diffusers' own processor that forms the weights; keeps them."""

    def __init__(self):
        self.weights = []

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **options):
        original = attn.get_attention_scores

        def scores(*args):
            self.weights.append(original(*args))
            return self.weights[-1]

        attn.get_attention_scores = scores
        try:
            return super().__call__(attn, hidden_states, encoder_hidden_states, **options)
        finally:
            del attn.get_attention_scores


@torch.no_grad()
def test_the_weights_of_every_layer_are_diffusers(tiny, pipeline):
    latents, context = torch.randn(2, 4, 8, 8, generator=seeded()), tiny.encode_prompt(PROMPTS)
    record = {name: Recording() for name in pipeline.unet.attn_processors}
    pipeline.unet.set_attn_processor(dict(record))
    pipeline.unet(latents, 300, context)
    seen = {}

    def attend(name, q, k, v):
        seen[name] = attention_weights(q, k)
        return F.scaled_dot_product_attention(q, k, v)

    for name, layer in tiny.unet.named_modules():
        if name.endswith(".attn2"):
            layer.attend = partial(attend, name)
    tiny.unet(latents, torch.tensor([300, 300]), context)
    assert len(seen) == 11
    for name, weights in seen.items():
        expected = torch.cat(record[f"{name}.processor"].weights).view(weights.shape)  # (b heads) n m
        torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)


def test_maps_sum_to_one_everywhere_and_leave_the_images_alone(tiny):
    plain = minti.sample(tiny, PROMPTS, generator=seeded(), **OPTIONS)
    with (maps := AttentionMaps(tiny, PROMPTS)).attached(tiny):
        drawn = minti.sample(tiny, PROMPTS, generator=seeded(), **OPTIONS)
    assert torch.equal(drawn, plain)
    assert maps.evaluations == 2
    assert maps.maps.shape == (2, 16, 8, 8)
    torch.testing.assert_close(maps.maps.sum(dim=1), torch.ones(2, 8, 8))
    # "a red cat" is at 1, 2, 3; in the other prompt "red" is at 5
    red = maps.of("red")
    assert torch.equal(red[0], maps.maps[0, 2])
    assert torch.equal(red[1], maps.maps[1, 5])


@torch.no_grad()
def test_maps_are_the_mean_over_evaluations_of_the_conditional_half(tiny):
    """Each step once more, without guidance and on the latents that the guided run had there."""
    latents = [torch.randn(2, 4, 8, 8, generator=seeded())]
    options = OPTIONS | {"output": "latents"}
    with (both := AttentionMaps(tiny, PROMPTS)).attached(tiny):
        minti.sample(tiny, PROMPTS, latents=latents[0], on_step=lambda step: latents.append(step.latents), **options)
    each = []
    for x, t in zip(latents, tiny.scheduler.timesteps(2)):
        with (one := AttentionMaps(tiny, PROMPTS)).attached(tiny):
            tiny.unet(x, torch.full((2,), t), tiny.encode_prompt(PROMPTS))
        each.append(one.maps)
    torch.testing.assert_close(both.maps, sum(each) / 2, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(each[0], each[1], rtol=1e-4, atol=1e-6)


def listeners(model):
    attending = [m for m in model.unet.modules() if getattr(m, "around", ()) or "attend" in vars(m)]
    return len(attending) + sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.unet.modules())


def test_nothing_stays_behind_even_when_sampling_fails(tiny):
    assert listeners(tiny) == 0
    with pytest.raises(RuntimeError, match="stop"), AttentionMaps(tiny, PROMPTS).attached(tiny):
        assert listeners(tiny) == 12

        def stop(step):
            raise RuntimeError("stop")

        minti.sample(tiny, PROMPTS, on_step=stop, **OPTIONS)
    assert listeners(tiny) == 0


def test_maps_cannot_be_attached_twice(tiny):
    """Every layer would be counted twice; the second attempt leaves the first as it was."""
    maps = AttentionMaps(tiny, PROMPTS)
    with maps.attached(tiny):
        refused = pytest.raises(RuntimeError, match="the recorder of attention maps is attached to a model already")
        with refused, maps.attached(tiny):
            pass
        assert listeners(tiny) == 12
        minti.sample(tiny, PROMPTS, generator=seeded(), **OPTIONS)
    assert listeners(tiny) == 0
    assert maps.evaluations == 2
    torch.testing.assert_close(maps.maps.sum(dim=1), torch.ones(2, 8, 8))
    with maps.attached(tiny):  # once it is detached it can be attached again
        assert listeners(tiny) == 12


def test_a_word_of_several_vectors_is_the_sum_of_its_tokens(tiny):
    tiny.add_word("<x>", torch.randn(2, 48, generator=seeded()))
    with (maps := AttentionMaps(tiny, ["a <x> cat"])).attached(tiny):
        minti.sample(tiny, ["a <x> cat"], generator=seeded(), **OPTIONS)
    torch.testing.assert_close(maps.of("<x>"), maps.maps[:, 2] + maps.maps[:, 3])
    torch.testing.assert_close(maps.of("cat"), maps.maps[:, 4])
    for word in ("dog", ""):
        with pytest.raises(ValueError, match="is not in the prompt 'a <x> cat'"):
            maps.of(word)


def test_maps_need_something_sampled(tiny):
    with pytest.raises(ValueError, match="nothing was sampled while the maps were attached"):
        _ = AttentionMaps(tiny, PROMPTS).maps


@pytest.mark.parametrize(("size", "halved"), [((9, 5), (3, 2)), ((8, 8), (2, 2)), ((7, 8), (2, 2))])
def test_sizes_are_found_again(size, halved):
    assert feature_size(halved[0] * halved[1], *size) == halved
    assert feature_size(size[0] * size[1], *size) == size
    with pytest.raises(ValueError, match="7 positions do not come from"):
        feature_size(7, *size)


def test_share_inside():
    """All of it, none of it, and where it looks everywhere alike the outline's share of the area."""
    inside = torch.zeros(3, 4, 4)
    inside[:, :2, :2] = 1
    maps = torch.stack([inside[0], 1 - inside[0], torch.full((4, 4), 0.3)])
    torch.testing.assert_close(share_inside(maps, inside), torch.tensor([1.0, 0.0, 0.25]))
