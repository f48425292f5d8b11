"""ODE samplers of the probability flow: Euler's and Heun's method (arXiv 2206.00364; questions `003`, 25). For latents
x = x_0 + sigma epsilon and D(x; sigma), the predicted clean latents (there, eq. 1 and 3):

    dx / dsigma = (x - D(x; sigma)) / sigma

The network gets x / sqrt(1 + sigma^2) = sqrt(alpha-bar) x_0 + sqrt(1 - alpha-bar) epsilon."""

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
    """Euler's method: first order, one evaluation a step. Deterministic, the same as DDIM with eta = 0. "linspace" has
    stops between timesteps, at interpolated sigmas, as in diffusers."""

    mean_slope = False

    def stops(self, scheduler: NoiseScheduler, num_inference_steps: int) -> list[Stop]:
        """With signal rate 1; spaced as "linspace" where the scheduler's config has no spacing."""
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
        for (t, level), (s, next_level) in run.intervals:
            clean, slope = clean_and_slope(predict, run, x, t, level)
            ahead = run.keep(euler_step(x, slope, level, next_level), next_level)
            if self.mean_slope and s != -1:
                _, slope_ahead = clean_and_slope(predict, run, ahead, s, next_level)
                ahead = run.keep(euler_step(x, (slope + slope_ahead) / 2, level, next_level), next_level)
            x = ahead
            yield SampleStep(t, scale_model_input(x, next_level), clean)


@dataclass(frozen=True)
class Heun(Euler):
    """Heun's method: Euler's step, repeated with the mean of the slopes at its two ends (there, Algorithm 1 without
    noise). Second order, 2 n - 1 evaluations for n steps: the last one, to the clean image, is Euler's."""

    mean_slope = True


def initial_x(run: Run) -> Tensor:
    """x_T = sigma_max * noise (diffusers' `init_noise_sigma`); an initial image is scaled already."""
    if run.start > 0:
        return run.latents
    sigma = run.stops[0].level.noise_rate
    # As diffusers: with "leading", far from pure noise, x is as wide as noise and an image of width 1 together.
    return run.latents * ((sigma**2 + 1) ** 0.5 if run.scheduler.config.timestep_spacing == "leading" else sigma)


def scale_model_input(x: Tensor, level: Level) -> Tensor:
    """x / sqrt(1 + sigma^2), the network's input."""
    return x / (level.noise_rate**2 + 1) ** 0.5


def clean_and_slope(predict: Predict, run: Run, x: Tensor, t: float, level: Level) -> tuple[Tensor, Tensor]:
    """D(x; sigma) and (x - D) / sigma, (b, c, h, w) both, in float32 at least."""
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
