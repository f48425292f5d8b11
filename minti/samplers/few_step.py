"""Samplers of few-step models: LCM and TCD, for consistency models, LCM-LoRA and Hyper-SD (questions `003`, 31 and 32).

A consistency function f(x_t, t) = c_skip x_t + c_out x_0(x_t, t) predicts from any point of a trajectory where it ends.
The timesteps are some of those of the solver that the model was distilled with. Guidance is part of such a model, so
guidance_scale is 1."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minti.denoising import Predict, Run, Sampler, SampleStep, Stop
from minti.scheduler import NoiseScheduler
from minti.utils import randn


def boundary_scalings(t: float | Tensor, s: float = 0.5) -> tuple[Tensor, Tensor]:
    """c_skip and c_out, 1 and 0 at t = 0 (arXiv 2303.01469, eq. 5; LCM scales t by 10).

    c_skip = s^2 / ((10 t)^2 + s^2),   c_out = 10 t / sqrt((10 t)^2 + s^2)
    """
    scaled = torch.as_tensor(t) * 10.0
    square = scaled**2 + s**2
    return s**2 / square, scaled / square**0.5


def solver_timesteps(scheduler: NoiseScheduler, solver_steps: int) -> list[int]:
    """Those of a distillation's solver, rising: k - 1, 2 k - 1, ... with k = T // solver_steps. Raises ValueError."""
    total = scheduler.config.num_train_timesteps
    if not 1 <= solver_steps <= total:
        raise ValueError(f"{solver_steps} solver steps; expected 1 to the schedule's {total} (usually 50)")
    return [i * (total // solver_steps) - 1 for i in range(1, solver_steps + 1)]


@dataclass(frozen=True)
class LCM(Sampler):
    """Multistep consistency sampling of latent consistency models (arXiv 2310.04378, Algorithm 3): f gets fresh noise
    for the next timestep. `original_inference_steps`: those of the solver that the model was distilled with."""

    original_inference_steps: int = 50

    def stops(self, scheduler: NoiseScheduler, num_inference_steps: int) -> list[Stop]:
        """Evenly spaced among the solver's timesteps. Raises ValueError: there are fewer of these."""
        n, rising = num_inference_steps, solver_timesteps(scheduler, self.original_inference_steps)
        if not 1 <= n <= len(rising):
            most = f"expected 1 to {len(rising)}, the steps of the distillation's solver (original_inference_steps)"
            raise ValueError(f"num_inference_steps = {n!r}; {most}")
        chosen = [rising[::-1][i] for i in np.linspace(0, len(rising), n, endpoint=False).astype(int)]
        return [Stop(t, scheduler.level(t)) for t in [*chosen, -1]]

    def __call__(self, predict: Predict, run: Run) -> Iterator[SampleStep]:
        latents = run.latents
        for (t, level), (s, next_level) in run.intervals:
            clean, _ = run.scheduler.clean_and_noise(predict(latents, t), latents, level)
            skip, out = boundary_scalings(t)
            latents = clean = out * clean + skip * latents
            if s != -1:
                # x_s = sqrt(a_s) f + sqrt(1 - a_s) z
                z = randn(latents.shape, run.generator, latents.device, latents.dtype)
                latents = next_level.signal_rate * clean + next_level.noise_rate * z
            latents = run.keep(latents, next_level)
            yield SampleStep(t, latents, clean)


@dataclass(frozen=True)
class TCD(LCM):
    """Strategic stochastic sampling of trajectory consistency distillation (arXiv 2402.19159, Algorithm 2): DDIM's step
    goes to timestep (1 - gamma) s, below the next one, s, and fresh noise leads back up to s.

    gamma: from 0, which is DDIM, to 1, fresh noise at every step as in LCM."""

    gamma: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma = {self.gamma!r}; expected 0 (deterministic, DDIM) to 1 (fresh noise)")

    def __call__(self, predict: Predict, run: Run) -> Iterator[SampleStep]:
        latents, scheduler = run.latents, run.scheduler
        for (t, level), (s, next_level) in run.intervals:
            clean, noise = scheduler.clean_and_noise(predict(latents, t), latents, level)
            end = max(s, 0)  # the last step ends at timestep 0, as in diffusers
            below = scheduler.alpha_bar(int(torch.floor((1 - self.gamma) * torch.tensor(end))))
            latents = below.sqrt() * clean + (1 - below).sqrt() * noise
            if self.gamma > 0 and s != -1:
                # x_s = sqrt(a_s / a_below) x_below + sqrt(1 - a_s / a_below) z
                ratio = scheduler.alpha_bar(end) / below
                z = randn(latents.shape, run.generator, latents.device, latents.dtype)
                latents = ratio.sqrt() * latents + (1 - ratio).sqrt() * z
            latents = run.keep(latents, next_level)
            yield SampleStep(t, latents, clean)


def check_guidance(sampler: Sampler, scale: Any) -> None:
    """Warns: more guidance on top of a few-step model's own saturates the image."""
    if isinstance(sampler, LCM) and not callable(scale) and scale > 2:
        found = f"guidance_scale = {scale:g} with the sampler {type(sampler).__name__.lower()}"
        warnings.warn(f"{found}: few-step models have guidance in them; set it to 1, at most 2", stacklevel=4)
