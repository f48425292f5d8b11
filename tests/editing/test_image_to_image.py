"""From a picture, and into the masked part of one."""

import diffusers
import pytest
import torch
from helpers import PROMPTS, SCHEDULER, seeded

import minti
from minti.configs import parse_config
from minti.denoising import DDIM, SAMPLERS, Run
from minti.editing.inversion import invert_ddim, inverted_noise
from minti.scheduler import NoiseScheduler, SchedulerConfig


@pytest.mark.slow
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


@pytest.mark.slow
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


def network(x, t):
    """Any function of latents and time."""
    return torch.tanh(x) * (0.3 + t / 1500)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_ddim_inversion_equals_diffusers(prediction_type, spacing):
    """Latents to noise as DDIMInverseScheduler goes, bit for bit."""
    config = SCHEDULER | {"prediction_type": prediction_type, "set_alpha_to_one": False, "timestep_spacing": spacing}
    theirs = diffusers.DDIMInverseScheduler(**config)
    ours = NoiseScheduler(parse_config(SchedulerConfig, config))
    theirs.set_timesteps(50)
    expected = clean = torch.randn(1, 4, 8, 8, generator=seeded(3))
    for t in theirs.timesteps:
        expected = theirs.step(network(expected, int(t)), int(t), expected).prev_sample
    *_, up = invert_ddim(network, Run(clean, ours, DDIM().stops(ours, 50)))
    assert torch.equal(up.latents, expected)


def test_ddim_returns_from_where_its_inversion_led():
    """Halving the step halves the error of a method of first order; here a tenth of the step."""
    scheduler, clean = (
        NoiseScheduler(parse_config(SchedulerConfig, SCHEDULER)),
        torch.randn(1, 4, 8, 8, generator=seeded(3)),
    )
    errors = []
    for n in (50, 500):
        stops = DDIM().stops(scheduler, n)
        *_, up = invert_ddim(network, Run(clean, scheduler, stops))
        *_, down = DDIM()(network, Run(up.latents, scheduler, stops))
        errors.append((down.latents - clean).abs().mean().item())
    assert errors[0] < 0.1
    assert errors[1] < errors[0] / 5


def test_the_iterated_inversion_is_led_back_by_diffusers_ddim():
    """Its fixed point is DDIM's own path, and diffusers' DDIMScheduler returns to where that began."""
    ours = NoiseScheduler(parse_config(SchedulerConfig, SCHEDULER | {"set_alpha_to_one": False}))
    theirs = diffusers.DDIMScheduler(**SCHEDULER, set_alpha_to_one=False)
    theirs.set_timesteps(20)
    clean = torch.randn(1, 4, 8, 8, generator=seeded(3))

    def missed(iterations):
        *_, up = invert_ddim(network, Run(clean, ours, DDIM().stops(ours, 20)), iterations)
        latents = up.latents
        for t in theirs.timesteps:
            latents = theirs.step(network(latents, int(t)), int(t), latents).prev_sample
        return (latents - clean).abs().max().item()

    assert missed(0) > 0.05
    assert missed(10) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("strength", [0.3, 0.5])
def test_a_part_of_the_path_leads_back_too(tiny, strength):
    """`inverted_noise` is what `from_picture` begins with; at levels where a random network's iterations converge."""
    picture, options = torch.randn(1, 4, 8, 8, generator=seeded(3)), {"num_inference_steps": 10, "sampler": "ddim"}
    noise = inverted_noise(tiny, picture, "a cat", 10, strength, iterations=20)
    given = {"latents": noise, "init_latents": picture, "strength": strength, "guidance_scale": 1}
    back = minti.sample(tiny, "a cat", output="latents", **given, **options)
    torch.testing.assert_close(back, picture, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_the_inverted_noise_draws_the_picture_again():
    """On the bundled model: much nearer to the picture than what the same prompt makes of other noise."""
    model, prompt = minti.StableDiffusion.from_pretrained(), "a photo of a red heart with a white stripe"
    options = {"num_inference_steps": 25, "sampler": "ddim", "guidance_scale": 1, "output": "latents"}
    picture = minti.sample(model, prompt, generator=seeded(), **options)
    noise = inverted_noise(model, picture, prompt, steps=25)
    assert noise.shape == picture.shape
    starts = (noise, torch.randn(noise.shape, generator=seeded(2)))
    back, other = (minti.sample(model, prompt, latents=x, **options) for x in starts)
    assert (back - picture).abs().mean() < 0.1 * (other - picture).abs().mean()
