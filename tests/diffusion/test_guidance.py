"""Guidance: what it costs, and what can be computed once."""

import math

import pytest
import torch
from helpers import PROMPTS, seeded

import minti
from minti.diffusion.guidance import GuidedPrediction, check_scale
from minti.diffusion.samplers import SAMPLERS, run_timesteps


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


def test_the_first_unconditional_prediction_serves_all_from_shared_noise(tiny):
    """2 B T - (B - 1) evaluations, equal up to rounding to the pictures drawn one by one."""
    noise = torch.randn(1, 4, 8, 8, generator=seeded())
    options = {"num_inference_steps": 5, "sampler": "ddim"}
    prompts = [*PROMPTS, "a photo"]
    *_, last = minti.sample_steps(tiny, prompts, latents=noise.expand(3, -1, -1, -1), **options)
    assert last.evaluations == 2 * 3 * 5 - 2
    for i, prompt in enumerate(prompts):
        alone = minti.sample(tiny, prompt, latents=noise, output="latents", **options)
        torch.testing.assert_close(last.latents[i : i + 1], alone, rtol=1e-4, atol=1e-4 * alone.abs().max().item())
    # In the first step alone, also where pictures stay alike.
    *_, last = minti.sample_steps(tiny, ["a cat"] * 3, latents=noise.expand(3, -1, -1, -1), **options)
    assert last.evaluations == 2 * 3 * 5 - 2
    # Where the negative prompts differ, nothing can be shared.
    *_, last = minti.sample_steps(tiny, PROMPTS, ["a", "b"], latents=noise.expand(2, -1, -1, -1), **options)
    assert last.evaluations == 2 * 2 * 5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_unconditional_trajectory_for_all(tiny, sampler):
    """T (B + 1) evaluations; exact for the empty prompt, whose own trajectory is the shared one."""
    noise = torch.randn(1, 4, 8, 8, generator=seeded()).expand(3, -1, -1, -1)
    generators = [seeded(5) for _ in range(3)]
    options = {"num_inference_steps": 6, "sampler": sampler, "generator": generators}
    *_, shared = minti.sample_steps(tiny, [*PROMPTS, ""], latents=noise, share_unconditional=True, **options)
    assert shared.latents.shape == shared.clean.shape == noise.shape
    evaluations = 7 if sampler == "pndm" else 6
    assert shared.evaluations == evaluations * (3 + 1)
    options["generator"] = [seeded(5)]
    exact = minti.sample(tiny, "", latents=noise[:1], guidance_scale=1, output="latents", **options)
    torch.testing.assert_close(shared.latents[2:], exact, rtol=1e-3, atol=1e-3 * exact.abs().max().item())


@pytest.mark.parametrize(("sampler", "picture"), [("ddpm", False), ("ddim", True)])
def test_an_unconditional_trajectory_for_one_picture_alone(tiny, sampler, picture):
    """It takes the picture's own generator, and begins as late where the run begins with a picture."""
    noise, clean = torch.randn(2, 1, 4, 8, 8, generator=seeded())
    options = {"sampler": sampler, "num_inference_steps": 6, "latents": noise}
    options |= {"init_latents": clean, "strength": 0.5} if picture else {}
    *_, shared = minti.sample_steps(tiny, "", share_unconditional=True, generator=[seeded(5)], **options)
    assert shared.evaluations == (3 if picture else 6) * 2
    exact = minti.sample(tiny, "", guidance_scale=1, output="latents", generator=[seeded(5)], **options)
    torch.testing.assert_close(shared.latents, exact, rtol=1e-3, atol=1e-3 * exact.abs().max().item())


def test_weights_go_up_to_a_million():
    for weight in (1e6, -1e6):
        check_scale("weight", weight)
        with pytest.raises(ValueError, match=r"weight = -?1000000\.0000000001; expected a number"):
            check_scale("weight", math.nextafter(weight, 2 * weight))


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
    timesteps = run_timesteps("ddim", tiny.scheduler, 6)
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
    guided = GuidedPrediction(
        lambda x, t, context: t[:, None, None, None] + context[..., None] * x, prompt, negative, 2.0, refresh_every=3
    )
    x = torch.tensor([1.0, 10.0]).view(1, 1, 1, 2)
    for i, t in enumerate((900, 700, 500, 300, 100)):
        refreshed = (900, 300)[i // 3]
        uncond, cond = refreshed + 3 * x, t + 5 * x
        assert torch.equal(guided(x, t), uncond + 2 * (cond - uncond))
    assert guided.evaluations == 5 + 2
