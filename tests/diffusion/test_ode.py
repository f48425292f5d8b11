"""Euler's method and Heun's where the exact flow is known; their equality with diffusers is in `test_samplers.py`."""

import numpy as np
import pytest
import torch
from helpers import seeded
from test_samplers import gaussian_world

import minti
from minti.denoising import DDIM, Run, Stop
from minti.samplers.ode import Euler, Heun
from minti.scheduler import Level, NoiseScheduler, SchedulerConfig

MEAN, STD = 1.5, 0.4


def flow_error(sampler, n):
    """How far n steps end from the exact flow from sigma = 8 to 0.1, where x_0 ~ N(mean, std^2).

    There x's distance from the mean shrinks as the width of its distribution does, sqrt(std^2 + sigma^2). The steps are
    even in sigma: between timesteps' levels sigma lies on straight lines, whose corners would hide the order.
    """
    scheduler, sigmas = NoiseScheduler(), torch.linspace(8.0, 0.1, n + 1)
    stops = [Stop(t, Level(torch.tensor(1.0), sigma)) for t, sigma in enumerate(sigmas)]
    x = torch.randn(1, 1, 50, 1, generator=seeded(), dtype=torch.float64)

    def predict(shrunk, t):  # the noise expected in x
        sigma = sigmas[t].double()
        x = shrunk * (sigma**2 + 1) ** 0.5
        return sigma * (x - MEAN) / (STD**2 + sigma**2)

    *_, last = sampler(predict, Run(x, scheduler, stops))
    width = (STD**2 + sigmas.double() ** 2).sqrt()
    expected = MEAN + (x * sigmas[0] - MEAN) * width[-1] / width[0]
    return (last.latents * (sigmas[-1].double() ** 2 + 1).sqrt() - expected).abs().max().item()


@pytest.mark.parametrize(("sampler", "order"), [(Euler(), 1), (Heun(), 2)])
def test_the_order_of_convergence(sampler, order):
    """Twice the steps, 2^order times nearer to the exact flow."""
    coarse, fine = flow_error(sampler, 400), flow_error(sampler, 800)
    assert np.log2(coarse / fine) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_euler_is_ddim(spacing, prediction_type):
    """x / sqrt(1 + sigma^2) takes DDIM's steps with eta = 0 (arXiv 2010.02502, eq. 14), from one beginning."""
    config = SchedulerConfig(timestep_spacing=spacing, prediction_type=prediction_type, set_alpha_to_one=True)
    scheduler = NoiseScheduler(config)
    start = torch.randn(1, 4, 8, 8, generator=seeded(3), dtype=torch.float64)
    predict = gaussian_world(MEAN, STD, scheduler)
    euler, ddim = Euler().stops(scheduler, 25), DDIM().stops(scheduler, 25)
    assert [stop.timestep for stop in euler] == [stop.timestep for stop in ddim]
    # From "trailing"'s first level diffusers leaves out the 1 of sqrt(sigma^2 + 1).
    sigma = euler[0].level.noise_rate.double()
    stretched = start * ((sigma**2 + 1) ** 0.5 / sigma if spacing == "trailing" else 1)
    for ours, theirs in zip(
        Euler()(predict, Run(stretched, scheduler, euler)), DDIM()(predict, Run(start, scheduler, ddim))
    ):
        torch.testing.assert_close(ours.latents, theirs.latents, rtol=0, atol=1e-4)
        torch.testing.assert_close(ours.clean, theirs.clean, rtol=0, atol=1e-4)


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("sampler", [Euler(), Heun()])
def test_from_pure_noise_counts_as_almost_pure(sampler, spacing):
    """With zero terminal SNR the first level is 2^12, as in diffusers' Euler, and every step is finite."""
    zero_snr = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": spacing}
    scheduler, start = NoiseScheduler(SchedulerConfig(**zero_snr)), torch.randn(1, 4, 2, 2, generator=seeded(3))
    for n in (2, 3, 4, 10, 25):
        stops = sampler.stops(scheduler, n)
        assert stops[0].level.noise_rate.item() == pytest.approx(2**12, rel=1e-3)
        for step in sampler(lambda x, t: torch.tanh(x) * 0.3, Run(start, scheduler, stops)):
            assert step.latents.isfinite().all()


@pytest.mark.parametrize("sampler", [Euler(), Heun()])
def test_it_continues_from_what_keep_returns(sampler):
    """Put on another run's path after its fourth step, it stays there.

    `keep` edits the latents; what a caller writes into a step's tensors changes no run any more.
    """
    scheduler = NoiseScheduler()
    predict, stops = gaussian_world(MEAN, STD, scheduler), sampler.stops(scheduler, 10)
    starts = [torch.randn(1, 4, 8, 8, generator=seeded(i), dtype=torch.float64) for i in (1, 2)]
    at_fourth: list[torch.Tensor] = []  # the other run's latents as `keep` gets them, once a step of Heun's twice

    def remember(latents, level):
        if level is stops[4].level:
            at_fourth.append(latents)
        return latents

    def take(latents, level):
        return at_fourth.pop(0) if level is stops[4].level else latents

    other = list(sampler(predict, Run(starts[1], scheduler, stops, keep=remember)))
    one = list(sampler(predict, Run(starts[0], scheduler, stops, keep=take)))
    for i, (ours, theirs) in enumerate(zip(one, other, strict=True)):
        if i < 3:
            assert (ours.latents - theirs.latents).abs().max() > 0.1
        else:
            torch.testing.assert_close(ours.latents, theirs.latents, rtol=0, atol=1e-6)


def test_heun_costs_two_evaluations_a_step_but_for_the_last(tiny):
    evaluations = [
        step.evaluations for step in minti.sample_steps(tiny, "a cat", num_inference_steps=5, sampler="heun")
    ]
    assert evaluations == [4, 8, 12, 16, 18]  # guided, so twice as many
