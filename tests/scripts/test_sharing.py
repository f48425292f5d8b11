"""E4, question 2: what images that start from the same noise can share of guidance, by exact counts of evaluations."""

from support.sharing import first_step_shared, unconditional_shared

import pytest
import torch
from helpers import PROMPTS, seeded

import minti
from minti.denoising import SAMPLERS
from minti.editing.image_to_image import ImageToImage


def test_the_first_unconditional_prediction_serves_all_from_shared_noise(tiny):
    """2 B T - (B - 1) evaluations, equal up to rounding to the images sampled one by one."""
    noise = torch.randn(1, 4, 8, 8, generator=seeded())
    options = {"num_inference_steps": 5, "sampler": "ddim", "latents": noise}
    prompts = [*PROMPTS, "a photo"]
    *_, last = minti.sample_steps(tiny, prompts, cfg=first_step_shared, **options)
    assert last.evaluations == 2 * 3 * 5 - 2
    for i, prompt in enumerate(prompts):
        alone = minti.sample(tiny, prompt, output="latents", **options)
        torch.testing.assert_close(last.latents[i : i + 1], alone, rtol=1e-4, atol=1e-4 * alone.abs().max().item())
    # In the first step alone, also where images stay equal.
    *_, last = minti.sample_steps(tiny, ["a cat"] * 3, cfg=first_step_shared, **options)
    assert last.evaluations == 2 * 3 * 5 - 2
    # Where the negative prompts differ, nothing can be shared; at scale 1 there is nothing unconditional.
    for negative, scale, evaluations in ((["a", "b"], 5, 2 * 2 * 5), ("", 1, 2 * 5)):
        how = options | {"guidance_scale": scale}
        *_, last = minti.sample_steps(tiny, PROMPTS, negative, cfg=first_step_shared, **how)
        assert last.evaluations == evaluations


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_unconditional_trajectory_for_all(tiny, sampler):
    """T (B + 1) evaluations; exact for the empty prompt, whose own trajectory is the shared one."""
    options = {"num_inference_steps": 6, "sampler": sampler, "latents": torch.randn(1, 4, 8, 8, generator=seeded())}
    generators = [seeded(5) for _ in range(4)]
    how = {"cfg": unconditional_shared, "generator": generators}
    *_, shared = minti.sample_steps(tiny, [*PROMPTS, "", ""], **options, **how)
    evaluations = {"pndm": 7, "heun": 11}.get(sampler, 6)
    assert shared.evaluations == evaluations * (3 + 1)
    exact = minti.sample(tiny, "", output="latents", guidance_scale=1, generator=[seeded(5)], **options)
    torch.testing.assert_close(shared.latents[2:3], exact, rtol=1e-3, atol=1e-3 * exact.abs().max().item())


def test_an_unconditional_trajectory_of_an_image(tiny):
    """It begins as late as the run, and with the image that the run begins with."""
    noise, clean = torch.randn(2, 1, 4, 8, 8, generator=seeded())
    options = {"sampler": "ddim", "num_inference_steps": 6, "latents": noise, "begin": ImageToImage(clean, 0.5)}
    *_, shared = minti.sample_steps(tiny, ["", ""], cfg=unconditional_shared, **options)
    assert shared.evaluations == 3 * 2
    exact = minti.sample(tiny, "", output="latents", guidance_scale=1, **options)
    torch.testing.assert_close(shared.latents[:1], exact, rtol=1e-3, atol=1e-3 * exact.abs().max().item())


@pytest.mark.parametrize(
    ("noise", "negative", "message"),
    [
        (torch.zeros(1, 4, 8, 8), ["a", "b"], "one negative prompt"),
        (torch.zeros(1, 4, 8, 8), "a photo", "one negative prompt"),
        (torch.rand(2, 4, 8, 8), PROMPTS[1], "initial noise"),
    ],
)
def test_what_cannot_be_shared(tiny, noise, negative, message):
    with pytest.raises(ValueError, match=message):
        next(minti.sample_steps(tiny, PROMPTS, negative, latents=noise, cfg=unconditional_shared))
