"""Guidance: what it costs, and what can be computed once."""

import math

import pytest
import torch
from helpers import PROMPTS, seeded

import minti
from minti.diffusion.guidance import Counted, Pull, guided, refreshed


def test_evaluations_are_counted(tiny):
    """E4, question 2: 2 B T evaluations, B T where the guidance scale is 1."""
    for scale, factor in ((7.5, 2), (1.0, 1), (0.0, 2)):
        steps = list(minti.sample_steps(tiny, PROMPTS, num_inference_steps=4, guidance_scale=scale))
        assert [step.evaluations for step in steps] == [factor * 2 * (i + 1) for i in range(4)]
        assert [step.timestep for step in steps] == tiny.scheduler.timesteps(4)


def test_the_empty_prompt_is_encoded_once(tiny):
    encoded = []
    hook = tiny.text_encoder.register_forward_pre_hook(lambda _, args: encoded.append(len(args[0])))
    next(minti.sample_steps(tiny, [*PROMPTS, "a photo"], num_inference_steps=2))
    next(minti.sample_steps(tiny, PROMPTS, num_inference_steps=2, guidance_scale=1))
    hook.remove()
    assert encoded == [3, 1, 2]


def test_pndm_evaluates_once_more(tiny):
    *_, last = minti.sample_steps(tiny, PROMPTS, num_inference_steps=50, sampler="pndm")
    assert last.evaluations == 2 * len(PROMPTS) * 51


def test_weights_go_up_to_a_million():
    for weight in (1e6, -1e6):
        Pull(torch.zeros(1, 1, 1), weight)
        with pytest.raises(ValueError, match=r"weight = -?1000000\.0000000001; expected a number"):
            Pull(torch.zeros(1, 1, 1), math.nextafter(weight, 2 * weight))


def test_refreshing_every_k_steps(tiny):
    """B T (1 + 1 / k) evaluations; every step is the exact run."""
    run = lambda **options: list(  # noqa: E731
        minti.sample_steps(tiny, PROMPTS, num_inference_steps=6, sampler="ddim", generator=seeded(), **options)
    )
    exact, every, third = run(), run(refresh_every=1), run(refresh_every=3)
    assert torch.equal(exact[-1].latents, every[-1].latents)
    assert third[-1].evaluations == 2 * 6 + 2 * 2
    assert torch.equal(third[0].latents, exact[0].latents)
    assert not torch.equal(third[1].latents, exact[1].latents)


def test_guidance_in_an_interval(tiny):
    timesteps = tiny.scheduler.timesteps(6)
    run = lambda **options: list(  # noqa: E731
        minti.sample_steps(tiny, PROMPTS, num_inference_steps=6, sampler="ddim", generator=seeded(), **options)
    )
    limited, off = run(guidance_interval=(timesteps[3], timesteps[2])), run(guidance_scale=1)
    assert [step.evaluations for step in limited] == [2, 4, 8, 12, 14, 16]
    torch.testing.assert_close(limited[1].latents, off[1].latents)
    assert not torch.allclose(limited[2].latents, off[2].latents)


def test_what_is_kept_is_the_unconditional_prediction():
    """uncond of the last refresh + s (cond - that), with a network whose answers can be told apart."""
    negative, prompt = torch.full((1, 1, 1), 3.0), torch.full((1, 1, 1), 5.0)
    counted = Counted(lambda x, t, context: t[:, None, None, None] + context[..., None] * x)
    predict = guided(refreshed(counted, 3, pictures=1), [Pull(prompt, 2.0)], negative)
    x = torch.tensor([1.0, 10.0]).view(1, 1, 1, 2)
    for i, t in enumerate((900, 700, 500, 300, 100)):
        last = (900, 300)[i // 3]
        uncond, cond = last + 3 * x, t + 5 * x
        assert torch.equal(predict(x, t), uncond + 2 * (cond - uncond))
    assert counted.evaluations == 5 + 2
