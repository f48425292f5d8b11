"""Runs of any number of steps, down to the noise that is nothing but noise."""

import diffusers
import numpy as np
import pytest
import torch
from helpers import parse_config, seeded

from minti.denoising import DDIM, DDPM, Run
from minti.scheduler import NoiseScheduler, SchedulerConfig


def test_trailing_timesteps_of_every_number_of_steps():
    """n of them, T - i T / n rounded and less one (arXiv 2305.08891, table 2); diffusers at times has one more, -1."""
    ours, theirs = NoiseScheduler(), diffusers.DDIMScheduler(timestep_spacing="trailing")
    for n in range(1, 1001):
        timesteps = np.array(ours.timesteps(n, "trailing"))
        assert len(timesteps) == n
        assert timesteps[0] == 999
        assert timesteps[-1] >= 0
        assert (np.diff(timesteps) < 0).all()
        assert np.abs(timesteps + 1 - (1000 - np.arange(n) * 1000 / n)).max() <= 0.5 + 1e-9
        theirs.set_timesteps(n)
        assert timesteps.tolist() == theirs.timesteps.tolist()[:n]


def zero_snr(spacing="trailing"):
    return NoiseScheduler(
        SchedulerConfig(
            rescale_betas_zero_snr=True,
            prediction_type="v_prediction",
            timestep_spacing=spacing,
            set_alpha_to_one=True,
        )
    )


def predict_with(scheduler):
    """A network that sees in the latents any function of them as the image, and the noise that goes with it."""

    def predict(x, t):
        clean = torch.tanh(x) * (0.3 + t / 1500)
        return scheduler.target(clean, scheduler.noise_from_clean(x, clean, t), t)

    return predict


@pytest.mark.parametrize("n", [2, 4, 5, 10, 20])
def test_ddim_with_eta_one_is_ancestral_sampling_from_pure_noise(n):
    """arXiv 2010.02502, section 4.1: sigma is then that of DDPM's posterior."""
    scheduler = zero_snr()
    start, timesteps = torch.randn(1, 4, 8, 8, generator=seeded(3)), scheduler.timesteps(n)
    assert scheduler.alphas_cumprod[timesteps[0]] == 0
    runs = [Run(start, scheduler, DDIM().stops(scheduler, n), seeded(4)) for _ in range(2)]
    # In the first step DDIM's share of the predicted noise is the root of zero, or of what rounding leaves of 1 - 1: of
    # 2^-22 at most, times noise that is not above 4.
    predict = predict_with(scheduler)
    for step, expected in zip(DDIM(eta=1.0)(predict, runs[0]), DDPM()(predict, runs[1]), strict=True):
        torch.testing.assert_close(step.latents, expected.latents, rtol=1e-4, atol=4 * 2**-11)


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_ddim_with_eta_one_is_finite(spacing):
    scheduler, start = zero_snr(spacing), torch.randn(1, 4, 2, 2, generator=seeded(3))
    for n in (2, 3, 4, 7, 10, 25, 50, 100):
        run = Run(start, scheduler, DDIM().stops(scheduler, n), seeded(4))
        for step in DDIM(eta=1.0)(predict_with(scheduler), run):
            assert step.latents.isfinite().all(), (n, step.timestep)


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan"), float("inf")])
def test_eta_is_from_0_to_1(eta):
    with pytest.raises(ValueError, match=r"eta = .*; expected 0"):
        DDIM(eta=eta)


# --- what a scheduler's file may ask for ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (diffusers.PNDMScheduler, {"skip_prk_steps": False}, "skip_prk_steps = False"),
        (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}, "use_karras_sigmas = True"),
        (diffusers.DPMSolverMultistepScheduler, {"use_exponential_sigmas": True}, "use_exponential_sigmas = True"),
        (diffusers.DPMSolverMultistepScheduler, {"use_flow_sigmas": True}, "use_flow_sigmas = True"),
        (diffusers.DPMSolverMultistepScheduler, {"use_lu_lambdas": True}, "use_lu_lambdas = True"),
        (diffusers.DDPMScheduler, {"clip_sample": False, "variance_type": "fixed_large"}, "variance_type = 'fixed_la"),
        (diffusers.DDPMScheduler, {"clip_sample": False, "thresholding": True}, "thresholding = True"),
    ],
)
def test_what_would_sample_otherwise_is_refused(kind, options, message):
    with pytest.raises(ValueError, match=f"scheduler_config.json: {message}"):
        parse_config(SchedulerConfig, dict(kind(**options).config), "scheduler_config.json")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (diffusers.PNDMScheduler, {"skip_prk_steps": True}),
        (diffusers.DPMSolverMultistepScheduler, {}),
        (diffusers.DDPMScheduler, {"clip_sample": False}),
        (diffusers.DDIMScheduler, {"clip_sample": False}),
    ],
)
def test_what_samples_the_same_is_read(kind, options):
    config = parse_config(SchedulerConfig, dict(kind(beta_start=0.001, **options).config))
    assert config.beta_start == 0.001
