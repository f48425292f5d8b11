"""Image to image (img2img) and inpainting: which part of a run is left, and what a mask keeps."""

import diffusers
import pytest
import torch
from helpers import PROMPTS, SCHEDULER, seeded

import minti
from minti.denoising import SAMPLERS, make_sampler
from minti.editing.image_to_image import ImageToImage


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_image_to_image_begins_where_the_strength_says(tiny, sampler):
    init = torch.randn(1, 4, 8, 8, generator=seeded(2))
    options = {"num_inference_steps": 10, "sampler": sampler}

    def visited(strength):
        steps = minti.sample_steps(tiny, "a cat", generator=seeded(), begin=ImageToImage(init, strength), **options)
        return [step.timestep for step in steps]

    def sampled(strength):
        options["begin"] = ImageToImage(init, strength)
        return minti.sample(tiny, "a cat", generator=seeded(), output="latents", **options)

    timesteps = [stop.timestep for stop in make_sampler(sampler).stops(tiny.scheduler, 10)[:-1]]
    assert visited(0.3) == timesteps[7:]
    assert visited(1.0) == timesteps
    little, much, whole = sampled(0.1), sampled(0.8), sampled(1)
    assert (little - init).abs().mean() < (much - init).abs().mean()
    del options["begin"]
    assert torch.equal(whole, minti.sample(tiny, "a cat", generator=seeded(), output="latents", **options))


def test_image_to_image_equals_the_pipeline(tiny, pipeline):
    """The same latents, noise and steps as StableDiffusionImg2ImgPipeline."""
    theirs = diffusers.StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = diffusers.DDIMScheduler(**SCHEDULER, set_alpha_to_one=False)
    init = torch.randn(1, 4, 8, 8, generator=seeded(2))
    options = {"num_inference_steps": 10, "generator": seeded()}
    expected = theirs("a cat", image=init, strength=0.6, output_type="latent", **options).images
    options |= {"generator": seeded(), "sampler": "ddim", "output": "latents"}
    got = minti.sample(tiny, "a cat", begin=ImageToImage(init, strength=0.6), **options)
    assert torch.equal(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_inpainting_keeps_the_unmasked_part(tiny, sampler):
    init = torch.randn(1, 4, 8, 8, generator=seeded(2))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    options = {"num_inference_steps": 8, "sampler": sampler, "generator": seeded(), "output": "latents"}
    drawn = minti.sample(tiny, PROMPTS, begin=ImageToImage(init, 1, mask), **options)
    assert torch.equal(drawn[..., 4:], init.expand(2, -1, -1, -1)[..., 4:])
    assert not torch.allclose(drawn[0, ..., :4], drawn[1, ..., :4])
    free = minti.sample(tiny, PROMPTS, **(options | {"generator": seeded()}))
    assert not torch.allclose(drawn[..., :4], free[..., :4])  # the new part depends on the kept one
