"""Timesteps in every form: an int, numpy's, a tensor for all images or for each; -1 is the clean image."""

import diffusers
import numpy as np
import pytest
import torch
from helpers import SCHEDULER, parse_config, seeded

import minti
from minti.scheduler import NoiseScheduler, SchedulerConfig

T = 1000
FORMS = {
    "int": lambda t: t,
    "numpy int64": np.int64,
    "numpy int32": np.int32,
    "()": torch.tensor,
    "(b,)": lambda t: torch.tensor([t, t]),
    "(b,) int32": lambda t: torch.tensor([t, t], dtype=torch.int32),
}
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def schedules():
    return NoiseScheduler(parse_config(SchedulerConfig, SCHEDULER)), diffusers.DDPMScheduler(**SCHEDULER)


@each_form
@pytest.mark.parametrize("t", [0, 7, T - 1])
def test_add_noise_takes_every_form(form, t):
    ours, theirs = schedules()
    clean, noise = torch.randn(2, 2, 4, 8, 8, generator=seeded())
    expected = theirs.add_noise(clean, noise, torch.tensor([t, t]))
    assert torch.equal(ours.add_noise(clean, noise, form(t)), expected)


@each_form
def test_minus_one_is_the_clean_image(form):
    ours, _ = schedules()
    clean, noise = torch.randn(2, 2, 4, 8, 8, generator=seeded())
    assert torch.equal(ours.add_noise(clean, noise, form(-1)), clean)
    assert (ours.alpha_bar(form(-1)) == 1).all()


def test_minus_one_among_others():
    ours, theirs = schedules()
    clean, noise = torch.randn(2, 2, 4, 8, 8, generator=seeded())
    noisy = ours.add_noise(clean, noise, torch.tensor([-1, 500]))
    assert torch.equal(noisy[0], clean[0])
    assert torch.equal(noisy[1:], theirs.add_noise(clean[1:], noise[1:], torch.tensor([500])))


@each_form
@pytest.mark.parametrize("t", [-5, -2, T, T + 7])
def test_a_timestep_out_of_the_schedule_is_refused(tiny, form, t):
    """None is counted from the end, as Python's negative indices are."""
    ours, _ = schedules()
    x = torch.zeros(2, 4, 8, 8)
    with pytest.raises(ValueError, match=rf"{t}\b.*{T - 1}"):
        ours.add_noise(x, x, form(t))
    with pytest.raises(ValueError, match=rf"{t}\b.*{T - 1}"):
        minti.diffusion_loss(tiny, x, form(t), tiny.encode_prompt(["a cat"] * 2), x)


@each_form
@torch.no_grad()
def test_timestep_idx_takes_every_form(tiny, pipeline, form):
    """Task 1's loss, equal to that of diffusers' networks."""
    latents, noise = torch.randn(2, 2, 4, 8, 8, generator=seeded())
    context, timesteps = tiny.encode_prompt(["a cat", "the dog"]), torch.tensor([600, 600])
    noisy = diffusers.DDPMScheduler(**SCHEDULER).add_noise(latents, noise, timesteps)
    expected = torch.nn.functional.mse_loss(pipeline.unet(noisy, timesteps, context).sample, noise)
    assert torch.equal(minti.diffusion_loss(tiny, latents, form(600), context, noise), expected)
