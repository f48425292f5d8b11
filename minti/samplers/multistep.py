"""Multistep samplers, which use the predictions of former steps: PNDM and DPM-Solver++ (questions `003`, 14 and 25)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minti.denoising import Predict, Run, Sampler, SampleStep, Stop
from minti.scheduler import Level, NoiseScheduler


@dataclass(frozen=True)
class PNDM(Sampler):
    """Pseudo linear multistep (PLMS of PNDM, arXiv 2202.09778), without Runge-Kutta steps, as SD v1.4's config says.

    Deterministic. The first step is taken twice, the second time with the mean of the predictions at its two ends: n
    steps cost n + 1 evaluations. Undefined at pure noise (zero terminal SNR)."""

    def __call__(self, predict: Predict, run: Run) -> Iterator[SampleStep]:
        latents, scheduler = run.latents, run.scheduler

        def transfer(output: Tensor, t: int) -> Tensor:
            _, noise = scheduler.clean_and_noise(output, latents, t)
            a_t, a_s = scheduler.alpha_bar(t), scheduler.alpha_bar(run.prev_timestep(t))
            # x_s = sqrt(a_s / a_t) x_t
            #     - (a_s - a_t) epsilon / (sqrt(a_t) (sqrt((1 - a_s) a_t) + sqrt((1 - a_t) a_s)))   (eq. 11)
            denominator = a_t * (1 - a_s) ** 0.5 + (a_t * (1 - a_t) * a_s) ** 0.5
            return (a_s / a_t) ** 0.5 * latents - (a_s - a_t) * noise / denominator

        if scheduler.alpha_bar(run.stops[run.start].timestep) == 0:
            raise ValueError("pndm cannot begin at pure noise; use leading spacing, or ddpm, ddim or dpm-solver++")
        e: list[Tensor] = []  # the network's outputs, the latest first
        for (t, level), (s, next_level) in run.intervals:
            output, origin = predict(latents, t), t
            clean, _ = scheduler.clean_and_noise(output, latents, level)
            e = [output, *e[:3]]
            if len(e) == 1 and s != -1:
                output = (predict(run.keep(transfer(output, t), next_level), s) + output) / 2
                origin = s + t - run.prev_timestep(t)  # as diffusers, for any spacing
            elif len(e) == 2:
                output = (3 * e[0] - e[1]) / 2
            elif len(e) == 3:
                output = (23 * e[0] - 16 * e[1] + 5 * e[2]) / 12
            elif len(e) == 4:  # Adams-Bashforth, eq. 12
                output = (1 / 24) * (55 * e[0] - 59 * e[1] + 37 * e[2] - 9 * e[3])
            latents = run.keep(transfer(output, origin), next_level)
            yield SampleStep(t, latents, clean)


@dataclass(frozen=True)
class DPMSolver(Sampler):
    """DPM-Solver++(2M) (arXiv 2211.01095, Algorithm 2): second order in the predicted clean latents. Deterministic. The
    last step, to the clean image, is of first order. `karras`: the noise levels of `karras_sigmas`."""

    karras: bool = False

    def stops(self, scheduler: NoiseScheduler, num_inference_steps: int) -> list[Stop]:
        """Spaced as "linspace" where the scheduler's config has no spacing."""
        spacing = scheduler.config.timestep_spacing or "linspace"
        timesteps = scheduler.timesteps(num_inference_steps, spacing, skip_last=True)
        sigmas = all_sigmas(scheduler)
        if self.karras:
            wanted, log_sigmas = karras_sigmas(scheduler, num_inference_steps), sigmas.log().double().numpy()
            timesteps = np.interp(np.log(wanted), log_sigmas, np.arange(len(log_sigmas))).round().astype(int).tolist()
            sigmas = torch.from_numpy(wanted.astype(np.float32))
        else:
            sigmas = sigmas[timesteps]
        sigmas = torch.cat([sigmas, torch.zeros(1)])
        signals = 1 / (sigmas**2 + 1) ** 0.5
        return [Stop(t, Level(signal, sigma * signal)) for t, signal, sigma in zip([*timesteps, -1], signals, sigmas)]

    def __call__(self, predict: Predict, run: Run) -> Iterator[SampleStep]:
        latents, former = run.latents, None  # the clean latents predicted one step ago, and that step's length
        for (t, level), (s, next_level) in run.intervals:
            clean, _ = run.scheduler.clean_and_noise(predict(latents, t), latents, level)
            x = latents.to(torch.promote_types(latents.dtype, torch.float32))
            h = log_snr(next_level) - log_snr(level)
            weight = next_level.signal_rate * (torch.exp(-h) - 1.0)
            # x_s = noise_s / noise_t x_t - signal_s (e^-h - 1) D
            # D = x_0 + (x_0 - former x_0) / (2 r),   r = former h / h
            x = (next_level.noise_rate / level.noise_rate) * x - weight * clean
            if former is not None and s != -1:
                former_clean, former_h = former
                x = x - 0.5 * weight * ((1.0 / (former_h / h)) * (clean - former_clean))
            latents, former = run.keep(x.to(latents.dtype), next_level), (clean, h)
            yield SampleStep(t, latents, clean)


def log_snr(level: Level) -> Tensor:
    """lambda = log(signal / noise)."""
    return torch.log(level.signal_rate) - torch.log(level.noise_rate)


def all_sigmas(scheduler: NoiseScheduler) -> Tensor:
    """sigma = sqrt((1 - alpha-bar) / alpha-bar) of all timesteps, (T,) float32; at pure noise (zero terminal SNR) large
    but finite, as in diffusers."""
    a = scheduler.alphas_cumprod.clone()
    a[-1] = a[-1] if a[-1] > 0 else 2.0**-24
    return ((1 - a) / a) ** 0.5


def karras_sigmas(scheduler: NoiseScheduler, n: int, rho: float = 7.0) -> np.ndarray:
    """sigma_i = (sigma_max^(1/rho) + i / (n - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho   (arXiv 2206.00364,
    eq. 5), (n,) float64, decreasing."""
    sigmas = all_sigmas(scheduler)
    low, high = float(sigmas[0]) ** (1 / rho), float(sigmas[-1]) ** (1 / rho)
    return (high + np.linspace(0, 1, n) * (low - high)) ** rho
