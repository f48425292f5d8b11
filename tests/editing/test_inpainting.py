"""Inpainting, and image to image at levels between timesteps: equal to diffusers' pipelines."""

import itertools
from dataclasses import replace

import diffusers
import pytest
import torch
from helpers import CLASSES, PIPELINE, PROMPTS, SCHEDULER, SKIP, THEIR_KEYS, seeded

import minti
from minti.denoising import make_sampler
from minti.editing.image_to_image import ImageToImage

KARRAS = "dpm-solver++ karras"


@pytest.fixture
def image():
    return torch.randn(1, 4, 8, 8, generator=seeded(2))


@pytest.fixture
def mask():
    """1 in a corner of the latents, and in some places of their own."""
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :3, :5] = mask[..., 6, ::2] = 1
    return mask


def pair(pipeline, sampler, kind):
    """A pipeline of diffusers with a sampler's scheduler, and the same as options of `minti.sample`."""
    sampler, *karras = sampler.split()
    keys = {"set_alpha_to_one": False} if sampler in ("ddim", "pndm") else {}
    config = SCHEDULER | {"timestep_spacing": "leading"} | keys | SKIP[sampler]  # as the small model's file has it
    theirs = kind(**pipeline.components, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = CLASSES[sampler](
        **{key: value for key, value in config.items() if key in THEIR_KEYS[sampler]},
        **{f"use_{k}_sigmas": True for k in karras},
    )
    return theirs, {"sampler": replace(make_sampler(sampler), **{k: True for k in karras}), "num_inference_steps": 10}


@pytest.mark.parametrize(
    ("sampler", "strength"),
    [
        ("ddim", 1.0),
        ("ddpm", 0.6),
        *(pytest.param(name, 1.0, marks=pytest.mark.slow) for name in (*CLASSES, KARRAS) if name != "ddim"),
        pytest.param(KARRAS, 0.6, marks=pytest.mark.slow),
    ],
)
def test_inpainting_equals_the_pipeline(tiny, pipeline, image, mask, sampler, strength):
    """Bit for bit; diffusers' pipeline takes UNets of four channels, too."""
    theirs, options = pair(pipeline, sampler, diffusers.StableDiffusionInpaintPipeline)
    expected = theirs(
        PROMPTS,
        image=image,
        mask_image=mask.repeat_interleave(2, 2).repeat_interleave(2, 3),
        masked_image_latents=image * (1 - mask),  # for UNets of nine channels only
        output_type="latent",
        **PIPELINE.get(sampler, {}),
        generator=seeded(),
        strength=strength,
        num_inference_steps=10,
    ).images
    given = {"begin": ImageToImage(image, strength, mask), "output": "latents", "generator": seeded()}
    assert torch.equal(minti.sample(tiny, PROMPTS, **given, **options), expected)


@pytest.mark.parametrize("strength", [0.5, 0.1])
@pytest.mark.parametrize("sampler", ["dpm-solver++", KARRAS])
def test_the_solver_begins_with_its_own_level_of_noise(tiny, pipeline, image, sampler, strength):
    """Karras' levels lie between timesteps; that of the timestep next to it would be up to 14 % off."""
    theirs, options = pair(pipeline, sampler, diffusers.StableDiffusionImg2ImgPipeline)
    images, both = image.repeat(2, 1, 1, 1), {"num_inference_steps": 10, "strength": strength}
    expected = theirs(PROMPTS, image=images, output_type="latent", generator=seeded(), **both).images
    given = {"begin": ImageToImage(image, strength), "output": "latents", "generator": seeded()}
    assert torch.equal(minti.sample(tiny, PROMPTS, **given, **options), expected)


@pytest.mark.parametrize("sampler", CLASSES)
def test_the_known_part_is_the_image_noised_to_each_step_s_level(tiny, image, mask, sampler):
    """Where the mask is 0: sqrt(a) image + sqrt(1 - a) noise of the next timestep, and at last the image itself."""
    noise, options = torch.randn(1, 4, 8, 8, generator=seeded(3)), {"num_inference_steps": 6, "sampler": sampler}
    given = {"latents": noise, "begin": ImageToImage(image, 1, mask)}
    steps = list(minti.sample_steps(tiny, "a cat", **given, **options))
    outside = (mask == 0).expand(1, 4, 8, 8)
    assert torch.equal(steps[-1].latents[outside], image[outside])
    for step, following in itertools.pairwise(steps):
        a = tiny.scheduler.alphas_cumprod[following.timestep]
        expected = a.sqrt() * image + (1 - a).sqrt() * noise
        torch.testing.assert_close(step.latents[outside], expected[outside], rtol=0, atol=1e-5)
