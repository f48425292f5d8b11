"""The variances beta_t of the noise schedule: linear, scaled linear, cosine; and stretched to zero terminal SNR."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def make_betas(schedule: str, beta_start: float, beta_end: float, steps: int) -> Tensor:
    """The variances beta_t, (steps,) float32.

    Raises:
        ValueError: unknown schedule.
    """
    if schedule == "linear":
        return torch.linspace(beta_start, beta_end, steps, dtype=torch.float32)
    if schedule == "scaled_linear":
        return torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float32) ** 2
    if schedule == "squaredcos_cap_v2":
        # alpha-bar(u) = cos^2((u + 0.008) / 1.008 * pi / 2)
        # beta_t = min(1 - alpha-bar((t + 1) / T) / alpha-bar(t / T), 0.999)
        def alpha_bar(u: float) -> float:
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

        betas = [min(1 - alpha_bar((t + 1) / steps) / alpha_bar(t / steps), 0.999) for t in range(steps)]
        return torch.tensor(betas, dtype=torch.float32)
    raise ValueError(f"unknown beta_schedule {schedule!r}; expected 'linear', 'scaled_linear' or 'squaredcos_cap_v2'")


def rescale_to_zero_snr(betas: Tensor) -> Tensor:
    """Shifts and scales sqrt(alpha-bar) so that it keeps its first value and ends at 0 (arXiv 2305.08891, Alg. 1)."""
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    alphas_cumprod = ((root - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])
