"""DeepCache, deep features reused: compared with diffusers' UNet, its blocks run by hand; where a run starts anew."""

import pytest
import torch
from helpers import PROMPTS, seeded

import minti
from minti.guidance.conditions import Conditions
from minti.speed.deep_cache import DeepCache

N = 9  # connections of the small UNet: conv_in, then (resnet, resnet, downsample), twice, then two resnets
RUN = {"num_inference_steps": 6, "sampler": "dpm-solver++", "output": "latents"}


def sampled(model, **options):
    if "interval" in options:
        options["cfg"] = Conditions(model, interval=options.pop("interval"))
    return minti.sample(model, PROMPTS, generator=seeded(), **(RUN | options))


def their_halves(unet, latents, t, context, deep=None, branch=2):
    """diffusers' layers, one by one: the answer, and what comes up to the resnet that takes connection `branch`."""
    emb = unet.time_embedding(unet.time_proj(t.expand(len(latents))))

    def layers(block, i, x):
        x = block.resnets[i](x, emb)
        return block.attentions[i](x, encoder_hidden_states=context).sample if hasattr(block, "attentions") else x

    x = unet.conv_in(latents)
    skips = [x]
    for block in unet.down_blocks:
        for i in range(len(block.resnets)):
            x = layers(block, i, x)
            skips.append(x)
        for downsampler in block.downsamplers or ():
            x = downsampler(x)
            skips.append(x)
    x = unet.mid_block(x, emb, encoder_hidden_states=context)
    kept = None
    for block in unet.up_blocks:
        for i in range(len(block.resnets)):
            if len(skips) == branch + 1:
                x = kept = x if deep is None else deep
            resnet = block.resnets[i]
            x = resnet(torch.cat([x, skips.pop()], dim=1), emb)
            x = block.attentions[i](x, encoder_hidden_states=context).sample if hasattr(block, "attentions") else x
        for upsampler in block.upsamplers or ():
            x = upsampler(x)
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(x))), kept


@torch.no_grad()
@pytest.mark.parametrize("branch", range(N))
def test_short_steps_are_the_upper_layers_of_diffusers(tiny, pipeline, branch):
    """All of the network is computed there, but for what comes up, which is the first step's: bit for bit."""
    context, theirs = tiny.encode_prompt(PROMPTS), pipeline.unet
    with DeepCache(3, branch).attached(tiny):
        for i, t in enumerate((900, 700, 500, 300)):
            x, t = torch.randn(2, 4, 8, 8, generator=seeded(i)), torch.tensor([t])
            expected, up = their_halves(theirs, x, t, context, None if i in (0, 3) else deep, branch)  # noqa: F821
            deep = up  # noqa: F841
            assert torch.equal(tiny.unet(x, t.expand(2), context), expected)


@pytest.mark.parametrize("options", [{}, {"interval": (200, 700)}, {"sampler": "heun"}, {"height": 24}])
def test_every_step_whole_is_the_model_alone(tiny, options):
    alone = sampled(tiny, **options)
    with DeepCache(1).attached(tiny):
        assert torch.equal(sampled(tiny, **options), alone)


def test_it_comes_out_without_a_trace(tiny):
    alone, hooks = sampled(tiny), [len(module._forward_pre_hooks) for module in tiny.unet.modules()]
    with DeepCache(3).attached(tiny):
        assert not torch.equal(sampled(tiny), alone)
    assert torch.equal(sampled(tiny), alone)
    assert "forward" not in vars(tiny.unet)
    assert [len(module._forward_pre_hooks) for module in tiny.unet.modules()] == hooks


@pytest.mark.parametrize(
    "second", [{}, {"height": 24}, {"num_inference_steps": 1}, {"guidance_scale": 1}, {"interval": (0, 500)}]
)
def test_a_second_run_begins_afresh(tiny, second):
    """What was sampled before, broken off or not, is in none of it."""
    with DeepCache(4).attached(tiny):
        first = sampled(tiny, **second)
    with DeepCache(4).attached(tiny):
        sampled(tiny)
        next(minti.sample_steps(tiny, PROMPTS, num_inference_steps=1))
        assert torch.equal(sampled(tiny, **second), first)


def whole_steps(model, **options):
    """How often the bottom of the UNet is computed, and how many steps there are."""
    count = [0]
    handle = model.unet.mid_block.register_forward_pre_hook(lambda *_: count.__setitem__(0, count[0] + 1))
    steps = list(minti.sample_steps(model, PROMPTS, **options))
    handle.remove()
    return count[0], len(steps)


@pytest.mark.parametrize(("every", "whole"), [(1, 10), (2, 5), (3, 4), (5, 2), (20, 1)])
def test_so_many_steps_are_whole(tiny, every, whole):
    with DeepCache(every).attached(tiny):
        assert whole_steps(tiny, num_inference_steps=10, sampler="ddim") == (whole, 10)
        # One more where guidance begins, and where it ends: the batch is another.
        interval = {"cfg": Conditions(tiny, interval=(350, 650))}
        parts = [len(range(0, n, every)) for n in (3, 3, 4)]
        assert whole_steps(tiny, num_inference_steps=10, sampler="ddim", **interval) == (sum(parts), 10)


def test_where_a_gradient_flows_every_step_is_whole(tiny):
    latents = torch.randn(2, 4, 8, 8, generator=seeded()).requires_grad_()
    options = RUN | {"latents": latents, "gradient": True, "num_inference_steps": 2}
    alone = torch.autograd.grad(minti.sample(tiny, PROMPTS, **options).sum(), latents)
    with DeepCache(2).attached(tiny):
        got = torch.autograd.grad(minti.sample(tiny, PROMPTS, **options).sum(), latents)
    assert torch.equal(got[0], alone[0])


def test_what_cannot_be_kept_is_said(tiny):
    with pytest.raises(ValueError, match="keep deep features for 0 steps; expected 1"):
        DeepCache(0)
    for branch in (-1, N):
        with (
            pytest.raises(ValueError, match=f"branch = {branch}; expected 0 to {N - 1}"),
            DeepCache(2, branch).attached(tiny),
        ):
            pass
    with DeepCache(2).attached(tiny), pytest.raises(ValueError, match="keeps deep features already"):
        next(DeepCache(2).hooks(tiny))
    assert "forward" not in vars(tiny.unet)
