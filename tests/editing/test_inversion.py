"""DDIM inversion: from an image to the noise that DDIM samples it from."""

import diffusers
import pytest
import torch
from helpers import SCHEDULER, parse_config, seeded

import minti
from minti.denoising import DDIM, Run
from minti.editing.image_to_image import ImageToImage
from minti.editing.inversion import invert_ddim, inverted_noise
from minti.scheduler import NoiseScheduler, SchedulerConfig


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
    """`inverted_noise` is what `ImageToImage` begins with; at levels where a random network's iterations converge."""
    image, options = torch.randn(1, 4, 8, 8, generator=seeded(3)), {"num_inference_steps": 10, "sampler": "ddim"}
    noise = inverted_noise(tiny, image, "a cat", 10, strength, iterations=20)
    given = {"latents": noise, "begin": ImageToImage(image, strength), "guidance_scale": 1}
    back = minti.sample(tiny, "a cat", output="latents", **given, **options)
    torch.testing.assert_close(back, image, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_the_inverted_noise_samples_the_image_again():
    """On the bundled model: much nearer to the image than what the same prompt makes of other noise."""
    model, prompt = minti.StableDiffusion.from_pretrained(), "a photo of a red heart with a white stripe"
    options = {"num_inference_steps": 25, "sampler": "ddim", "guidance_scale": 1, "output": "latents"}
    image = minti.sample(model, prompt, generator=seeded(), **options)
    noise = inverted_noise(model, image, prompt, steps=25)
    assert noise.shape == image.shape
    starts = (noise, torch.randn(noise.shape, generator=seeded(2)))
    back, other = (minti.sample(model, prompt, latents=x, **options) for x in starts)
    assert (back - image).abs().mean() < 0.1 * (other - image).abs().mean()
