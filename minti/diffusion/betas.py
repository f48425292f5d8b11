"""Which noise schedule a model was trained with, and its variances beta_t: linear, scaled linear, cosine; and stretched
to zero terminal SNR (lecture notes `002`, 4.1 and 5.2; questions `003`, 1 and 20).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from minti.machine.messages import quoted

SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
SPACINGS = ("leading", "linspace", "trailing")


@dataclass(frozen=True)
class SchedulerConfig:
    """The keys of `scheduler/scheduler_config.json`; the defaults are SD v1.4's.

    Attributes:
        beta_schedule, beta_start, beta_end, num_train_timesteps: as `make_betas` takes them.
        prediction_type: what the UNet was trained to predict: "epsilon", "sample" (x_0) or "v_prediction".
        timestep_spacing: which timesteps a short run visits; see `NoiseScheduler.timesteps`. None: the sampler's own.
        steps_offset: added to the timesteps of "leading".
        set_alpha_to_one: whether DDIM's last step ends at alpha-bar = 1, or at alpha-bar_0 as SD does.
        rescale_betas_zero_snr: whether the schedule is stretched until its last timestep is pure noise.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction_type: str = "epsilon"
    timestep_spacing: str | None = None
    steps_offset: int = 0
    set_alpha_to_one: bool = False
    rescale_betas_zero_snr: bool = False


def make_betas(schedule: str, beta_start: float, beta_end: float, steps: int) -> Tensor:
    """The variances beta_t of T = `steps` timesteps, (T,) float32; the cosine needs neither the first nor the last.

    `schedule`: "linear" (DDPM, arXiv 2006.11239), "scaled_linear" (latent diffusion, arXiv 2112.10752: the square roots
    are linear) or "squaredcos_cap_v2" (the cosine of arXiv 2102.09672, eq. 17). Raises ValueError: an unknown one.
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
    raise ValueError(f"unknown beta_schedule {quoted(schedule)}; expected one of {SCHEDULES}")


def rescale_to_zero_snr(betas: Tensor) -> Tensor:
    """Shifts and scales sqrt(alpha-bar) so that it keeps its first value and ends at 0 (arXiv 2305.08891, Alg. 1): the
    last timestep is pure noise, without a signal. `betas`: (T,). Returns (T,), the last of them 1.
    """
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    alphas_cumprod = ((root - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])
