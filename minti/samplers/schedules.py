"""Noise schedules beside SD v1.4's: the cosine, and a schedule stretched to zero terminal SNR.

Lecture notes `002`, 4.1 and 5.2; questions `003`, 1 and 20.
"""

import math

import torch
from torch import Tensor

from minti.scheduler import SchedulerConfig


def make_betas(config: SchedulerConfig) -> Tensor:
    """The variances beta_t of T timesteps, (T,) float32."""
    steps = config.num_train_timesteps
    if config.beta_schedule == "linear":
        betas = torch.linspace(config.beta_start, config.beta_end, steps, dtype=torch.float32)
    elif config.beta_schedule == "scaled_linear":
        betas = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, steps, dtype=torch.float32) ** 2
    else:
        betas = cosine_betas(steps)
    return rescale_to_zero_snr(betas) if config.rescale_betas_zero_snr else betas


def cosine_betas(steps: int) -> Tensor:
    """ "squaredcos_cap_v2", the cosine of arXiv 2102.09672, eq. 17, (T,) float32."""

    # alpha-bar(u) = cos^2((u + 0.008) / 1.008 * pi / 2)
    # beta_t = min(1 - alpha-bar((t + 1) / T) / alpha-bar(t / T), 0.999)
    def alpha_bar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - alpha_bar((t + 1) / steps) / alpha_bar(t / steps), 0.999) for t in range(steps)]
    return torch.tensor(betas, dtype=torch.float32)


def rescale_to_zero_snr(betas: Tensor) -> Tensor:
    """Shifts and scales sqrt(alpha-bar) so that it keeps its first value and ends at 0 (arXiv 2305.08891, Alg. 1): the
    last timestep is pure noise, without a signal. `betas`: (T,). Returns (T,), the last of them 1.
    """
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    alphas_cumprod = ((root - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])
