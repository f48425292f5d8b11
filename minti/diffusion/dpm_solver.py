"""DPM-Solver++(2M), and the levels of noise that it stops at (questions `003`, 14 and 25)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from minti.diffusion.scheduler import Level, NoiseScheduler
from minti.diffusion.trajectory import Predict, SamplerStep
from minti.machine.noise import Generators


def karras_sigmas(scheduler: NoiseScheduler, n: int, rho: float = 7.0) -> np.ndarray:
    """sigma_i = (sigma_max^(1/rho) + i / (n - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho.

    arXiv 2206.00364, eq. 5. sigma = sqrt((1 - alpha-bar) / alpha-bar) is the noise relative to the signal.

    Returns:
        (n,) float64, decreasing.
    """
    sigmas = all_sigmas(scheduler)
    low, high = float(sigmas[0]) ** (1 / rho), float(sigmas[-1]) ** (1 / rho)
    return (high + np.linspace(0, 1, n) * (low - high)) ** rho


def all_sigmas(scheduler: NoiseScheduler) -> Tensor:
    """Of all timesteps, (T,) float32; pure noise (zero terminal SNR) counts as almost pure, as in diffusers."""
    a = scheduler.alphas_cumprod.clone()
    a[-1] = a[-1] if a[-1] > 0 else 2.0**-24
    return ((1 - a) / a) ** 0.5


def solver_levels(scheduler: NoiseScheduler, timesteps: list[int], karras: bool = False) -> list[Level]:
    """The levels of noise at which the solver stops: those of the timesteps or between them, and at last none."""
    if karras:
        sigmas = torch.from_numpy(karras_sigmas(scheduler, len(timesteps)).astype(np.float32))
    else:
        sigmas = all_sigmas(scheduler)[timesteps]
    sigmas = torch.cat([sigmas, torch.zeros(1)])
    signals = 1 / (sigmas**2 + 1) ** 0.5
    return [Level(signal, sigma * signal) for signal, sigma in zip(signals, sigmas)]


def dpm_solver(
    predict: Predict,
    latents: Tensor,
    scheduler: NoiseScheduler,
    timesteps: list[int],
    generator: Generators = None,
    karras: bool = False,
    start: int = 0,
) -> Iterator[SamplerStep]:
    """DPM-Solver++(2M) (arXiv 2211.01095, Algorithm 2): second order in the predicted clean latents. Deterministic.

    lambda = log(signal / noise) runs from noisy to clean; the last step, to the clean picture, is of first order.

    Args:
        timesteps: of `run_timesteps`, which spaces them as this sampler wants it.
        karras: levels of noise as in `karras_sigmas`, which lie between timesteps.
    """
    levels = solver_levels(scheduler, timesteps, karras)
    lambdas = [torch.log(level.signal_rate) - torch.log(level.noise_rate) for level in levels]

    former = None  # the clean latents predicted one step ago
    for i, t in enumerate(timesteps[start:], start):
        output = scheduler.target(*predict(latents, t), t)
        clean, _ = scheduler.clean_and_noise(output, latents, levels[i])
        x = latents.to(torch.promote_types(latents.dtype, torch.float32))
        h = lambdas[i + 1] - lambdas[i]
        weight = levels[i + 1].signal_rate * (torch.exp(-h) - 1.0)
        # x_s = noise_s / noise_t x_t - signal_s (e^-h - 1) D
        # D = x_0 + (x_0 - former x_0) / (2 r),   r = former h / h
        x = (levels[i + 1].noise_rate / levels[i].noise_rate) * x - weight * clean
        if former is not None and i + 1 < len(timesteps):
            r = (lambdas[i] - lambdas[i - 1]) / h
            x = x - 0.5 * weight * ((1.0 / r) * (clean - former))
        latents, former = x.to(latents.dtype), clean
        yield SamplerStep(t, latents, clean)
