"""Noise schedules: the cosine schedule, and zero terminal SNR (lecture notes `002`, 5.2; questions `003`, 20)."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from minti.scheduler import SchedulerConfig
from minti.scheduler import make_betas as linear_betas


def make_betas(config: SchedulerConfig) -> Tensor:
    """The betas, (T,) float32, of a cosine schedule or with zero terminal SNR."""
    if config.beta_schedule == "squaredcos_cap_v2":
        betas = cosine_betas(config.num_train_timesteps)
    else:
        betas = linear_betas(replace(config, rescale_betas_zero_snr=False))
    return rescale_to_zero_snr(betas) if config.rescale_betas_zero_snr else betas


def cosine_betas(steps: int) -> Tensor:
    """The cosine schedule, "squaredcos_cap_v2" (arXiv 2102.09672, eq. 17), (T,) float32.

    f(t) = cos^2((t / T + 0.008) / 1.008 pi / 2),  alpha-bar_t = f(t) / f(0),  beta_t = min(1 - f(t + 1) / f(t), 0.999)
    """

    def f(t: int) -> float:
        return math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - f(t + 1) / f(t), 0.999) for t in range(steps)]
    return torch.tensor(betas, dtype=torch.float32)


def rescale_to_zero_snr(betas: Tensor) -> Tensor:
    """Zero terminal SNR: shifts and scales sqrt(alpha-bar) so that it keeps its first value and ends at 0 (arXiv
    2305.08891, Alg. 1). `betas`: (T,). Returns (T,), the last of them 1."""
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    alphas_cumprod = ((root - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])
