"""From a picture, and into the masked part of one."""

import diffusers
import pytest
import torch
from helpers import PROMPTS, SCHEDULER, seeded

import minti
from minti.diffusion.samplers import SAMPLERS


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_image_to_image_begins_where_the_strength_says(tiny, sampler):
    init = torch.randn(1, 4, 8, 8, generator=seeded(2))
    options = {"num_inference_steps": 10, "sampler": sampler, "init_latents": init}
    visited = lambda strength: [  # noqa: E731
        step.timestep for step in minti.sample_steps(tiny, "a cat", generator=seeded(), strength=strength, **options)
    ]
    timesteps = [stop.timestep for stop in SAMPLERS[sampler]().stops(tiny.scheduler, 10)[:-1]]
    assert visited(0.3) == timesteps[7:]
    assert visited(1.0) == timesteps
    little, much = (
        minti.sample(tiny, "a cat", generator=seeded(), strength=s, output="latents", **options) for s in (0.1, 0.8)
    )
    assert (little - init).abs().mean() < (much - init).abs().mean()
    whole = minti.sample(tiny, "a cat", generator=seeded(), strength=1, output="latents", **options)
    del options["init_latents"]
    assert torch.equal(whole, minti.sample(tiny, "a cat", generator=seeded(), output="latents", **options))


def test_image_to_image_equals_the_pipeline(tiny, pipeline):
    """The same latents, noise and steps as StableDiffusionImg2ImgPipeline."""
    theirs = diffusers.StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = diffusers.DDIMScheduler(**SCHEDULER, set_alpha_to_one=False)
    init = torch.randn(1, 4, 8, 8, generator=seeded(2))
    options = {"num_inference_steps": 10, "strength": 0.6, "generator": seeded()}
    expected = theirs("a cat", image=init, output_type="latent", **options).images
    options["generator"] = seeded()
    got = minti.sample(tiny, "a cat", init_latents=init, sampler="ddim", output="latents", **options)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_inpainting_keeps_the_unmasked_part(tiny, sampler):
    init = torch.randn(1, 4, 8, 8, generator=seeded(2))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    options = {"num_inference_steps": 8, "sampler": sampler, "generator": seeded(), "strength": 1, "output": "latents"}
    drawn = minti.sample(tiny, PROMPTS, init_latents=init, mask=mask, **options)
    assert torch.equal(drawn[..., 4:], init.expand(2, -1, -1, -1)[..., 4:])
    assert not torch.allclose(drawn[0, ..., :4], drawn[1, ..., :4])
    free = minti.sample(tiny, PROMPTS, **(options | {"generator": seeded()}))
    assert not torch.allclose(drawn[..., :4], free[..., :4])  # the kept part is seen by the drawn one
