"""E4, question 2: what pictures that begin alike can share of guidance, by exact counts of evaluations."""

from support.sharing import shared_steps, unconditional_shared

import pytest
import torch
from helpers import PROMPTS, seeded

import minti
from minti.denoising import SAMPLERS


def test_the_first_unconditional_prediction_serves_all_from_shared_noise(tiny):
    """2 B T - (B - 1) evaluations, equal up to rounding to the pictures drawn one by one."""
    noise = torch.randn(1, 4, 8, 8, generator=seeded())
    options = {"num_inference_steps": 5, "sampler": "ddim"}
    prompts = [*PROMPTS, "a photo"]
    *_, last = shared_steps(tiny, prompts, noise.expand(3, -1, -1, -1), **options)
    assert last.evaluations == 2 * 3 * 5 - 2
    for i, prompt in enumerate(prompts):
        alone = minti.sample(tiny, prompt, latents=noise, output="latents", **options)
        torch.testing.assert_close(last.latents[i : i + 1], alone, rtol=1e-4, atol=1e-4 * alone.abs().max().item())
    # In the first step alone, also where pictures stay alike.
    *_, last = shared_steps(tiny, ["a cat"] * 3, noise.expand(3, -1, -1, -1), **options)
    assert last.evaluations == 2 * 3 * 5 - 2
    # Where the negative prompts differ, nothing can be shared.
    *_, last = shared_steps(tiny, PROMPTS, noise.expand(2, -1, -1, -1), negative_prompts=["a", "b"], **options)
    assert last.evaluations == 2 * 2 * 5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_unconditional_trajectory_for_all(tiny, sampler):
    """T (B + 1) evaluations; exact for the empty prompt, whose own trajectory is the shared one."""
    noise = torch.randn(1, 4, 8, 8, generator=seeded()).expand(3, -1, -1, -1)
    options = {"num_inference_steps": 6, "sampler": sampler}
    prompts, generators = [*PROMPTS, ""], [seeded(5) for _ in range(3)]
    *_, shared = shared_steps(tiny, prompts, noise, unconditional_shared, generator=generators, **options)
    assert shared.latents.shape == shared.clean.shape == noise.shape
    evaluations = {"pndm": 7, "heun": 11}.get(sampler, 6)
    assert shared.evaluations == evaluations * (3 + 1)
    options |= {"guidance_scale": 1, "generator": [seeded(5)]}
    exact = minti.sample(tiny, "", latents=noise[:1], output="latents", **options)
    torch.testing.assert_close(shared.latents[2:], exact, rtol=1e-3, atol=1e-3 * exact.abs().max().item())


@pytest.mark.parametrize(("sampler", "picture"), [("ddpm", False), ("ddim", True)])
def test_an_unconditional_trajectory_for_one_picture_alone(tiny, sampler, picture):
    """It takes the picture's own generator, and begins as late where the run begins with a picture."""
    noise, clean = torch.randn(2, 1, 4, 8, 8, generator=seeded())
    options = {"sampler": sampler, "num_inference_steps": 6}
    options |= {"init_latents": clean, "strength": 0.5} if picture else {}
    *_, shared = shared_steps(tiny, [""], noise, unconditional_shared, generator=[seeded(5)], **options)
    assert shared.evaluations == (3 if picture else 6) * 2
    options |= {"guidance_scale": 1, "generator": [seeded(5)]}
    exact = minti.sample(tiny, "", latents=noise, output="latents", **options)
    torch.testing.assert_close(shared.latents, exact, rtol=1e-3, atol=1e-3 * exact.abs().max().item())


@pytest.mark.parametrize(
    ("noise", "negative", "message"),
    [(torch.zeros(2, 4, 8, 8), ["a", "b"], "one negative prompt"), (torch.rand(2, 4, 8, 8), None, "initial noise")],
)
def test_what_cannot_be_shared(tiny, noise, negative, message):
    with pytest.raises(ValueError, match=message):
        next(shared_steps(tiny, PROMPTS, noise, unconditional_shared, negative))
