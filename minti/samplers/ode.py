"""ODE samplers, along the probability flow: Euler's method and Heun's (arXiv 2206.00364; questions `003`, 25).

Here the latents are x = x_0 + sigma epsilon, which no signal rate shrinks, and with the denoiser's answer D(x; sigma),
the clean latents as predicted, their whole way from noise to image is one curve of one equation (there, eq. 1 and 3):

    dx / dsigma = (x - D(x; sigma)) / sigma

A network that was trained on sqrt(alpha-bar) x_0 + sqrt(1 - alpha-bar) epsilon is asked about x / sqrt(1 + sigma^2).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minti.denoising import Predict, Run, Sampler, SampleStep, Stop
from minti.samplers.multistep import all_sigmas
from minti.scheduler import Level, NoiseScheduler


@dataclass(frozen=True)
class Euler(Sampler):
    """Straight on along the slope: first order, one evaluation a step. Deterministic; DDIM with eta = 0 in other words.

    Its "linspace" stops between timesteps, at sigmas between theirs, as in diffusers; pure noise (zero terminal SNR)
    counts as almost pure.
    """

    def stops(self, scheduler: NoiseScheduler, num_inference_steps: int) -> list[Stop]:
        """The levels are x's, with signal rate 1; spaced as "linspace" where the scheduler's config has no wish."""
        config, total = scheduler.config, scheduler.config.num_train_timesteps
        timesteps = scheduler.timesteps(num_inference_steps, config.timestep_spacing or "linspace")
        if (config.timestep_spacing or "linspace") == "linspace":
            exact = np.linspace(0, total - 1, num_inference_steps, dtype=np.float32)[::-1].tolist()
            timesteps = [int(t) if t.is_integer() else t for t in exact]
        sigmas = np.interp(timesteps, np.arange(total), all_sigmas(scheduler).numpy())
        sigmas = torch.from_numpy(np.append(sigmas, 0.0).astype(np.float32))
        return [Stop(t, Level(torch.tensor(1.0), sigma)) for t, sigma in zip([*timesteps, -1], sigmas)]

    def __call__(self, predict: Predict, run: Run) -> Iterator[SampleStep]:
        x = initial_x(run)
        for (t, level), (_, next_level) in run.intervals:
            clean, slope = clean_and_slope(predict, run, x, t, level)
            x = run.keep(euler_step(x, slope, level, next_level), next_level)
            yield SampleStep(t, scale_model_input(x, next_level), clean)


@dataclass(frozen=True)
class Heun(Euler):
    """Euler's step, and once more with the mean of the slopes at its two ends (there, Algorithm 1 without noise).

    Second order, for 2 n - 1 evaluations of n steps: at the clean image, where the last one ends, there is no slope.
    """

    def __call__(self, predict: Predict, run: Run) -> Iterator[SampleStep]:
        x = initial_x(run)
        for (t, level), (s, next_level) in run.intervals:
            clean, slope = clean_and_slope(predict, run, x, t, level)
            ahead = run.keep(euler_step(x, slope, level, next_level), next_level)
            if s != -1:
                _, slope_ahead = clean_and_slope(predict, run, ahead, s, next_level)
                ahead = run.keep(euler_step(x, (slope + slope_ahead) / 2, level, next_level), next_level)
            yield SampleStep(t, scale_model_input(ahead, next_level), clean)
            x = ahead


def initial_x(run: Run) -> Tensor:
    """x_T = sigma_max * noise (diffusers' `init_noise_sigma`); an image to begin with is scaled already."""
    if run.start > 0:
        return run.latents
    sigma = run.stops[0].level.noise_rate
    # As diffusers: with "leading", far from pure noise, x is as wide as noise and an image of width 1 together.
    return run.latents * ((sigma**2 + 1) ** 0.5 if run.scheduler.config.timestep_spacing == "leading" else sigma)


def scale_model_input(x: Tensor, level: Level) -> Tensor:
    """x / sqrt(1 + sigma^2), the latents as the network knows them; at the end they are x."""
    return x / (level.noise_rate**2 + 1) ** 0.5


def clean_and_slope(predict: Predict, run: Run, x: Tensor, t: float, level: Level) -> tuple[Tensor, Tensor]:
    """D(x; sigma) and (x - D) / sigma, (b, c, h, w) both; half precision is computed with in float32."""
    output, sigma = predict(scale_model_input(x, level), t), level.noise_rate
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if run.scheduler.config.prediction_type == "v_prediction":
        # D = x / (sigma^2 + 1) - sigma / sqrt(sigma^2 + 1) v
        clean = output * (-sigma / (sigma**2 + 1) ** 0.5) + x / (sigma**2 + 1)
    else:
        clean, _ = run.scheduler.clean_and_noise(output, x, level)
    return clean, (x - clean) / sigma


def euler_step(x: Tensor, slope: Tensor, level: Level, next_level: Level) -> Tensor:
    """x + (sigma_s - sigma_t) dx / dsigma, in the dtype of x."""
    return (x + slope * (next_level.noise_rate - level.noise_rate)).to(x.dtype)
