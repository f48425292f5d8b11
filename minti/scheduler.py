"""The noise schedule: how much noise each timestep carries, and every formula that follows from it.

DDPM's notation (arXiv 2006.11239): beta_t is the variance added at step t, alpha_t = 1 - beta_t, alpha-bar_t the
product of alpha_1 to alpha_t (`alphas_cumprod`), x_0 the clean latents, epsilon the noise. Lecture notes `002`, 4, 5,
6.5; questions `003`, 1, 2, 11, 20. The lecture counts t = 1 .. T; the code 0 .. T - 1, and t = -1 is the clean image.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from minti.utils import check, plugin

SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
SPACINGS = ("leading", "linspace", "trailing")
VARIANCES = {"posterior": 0.0, "beta": 1.0}  # the exponent v of `NoiseScheduler.posterior`


@dataclass(frozen=True)
class SchedulerConfig:
    """The keys of `scheduler/scheduler_config.json`; the defaults are SD v1.4's."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction_type: str = "epsilon"  # what the UNet predicts: "epsilon", "sample" (x_0) or "v_prediction"
    timestep_spacing: str | None = None  # of a short run, see `NoiseScheduler.timesteps`; None: the sampler's own
    steps_offset: int = 0  # added to the timesteps of "leading"
    set_alpha_to_one: bool = False  # whether DDIM's last step ends at alpha-bar = 1, or at alpha-bar_0 as SD does
    rescale_betas_zero_snr: bool = False  # whether the last timestep is pure noise


def make_betas(config: SchedulerConfig) -> Tensor:
    """beta_t, (T,) float32: linear (DDPM), or with linear square roots (arXiv 2112.10752); see `samplers.schedules`."""
    check("runs.messages:check_choice", "beta_schedule", config.beta_schedule, SCHEDULES)
    if config.beta_schedule == "squaredcos_cap_v2" or config.rescale_betas_zero_snr:
        return plugin("minti.samplers.schedules:make_betas")(config)
    power = 2 if config.beta_schedule == "scaled_linear" else 1
    ends = config.beta_start ** (1 / power), config.beta_end ** (1 / power)
    return torch.linspace(*ends, config.num_train_timesteps, dtype=torch.float32) ** power


class Level(NamedTuple):
    """x = signal_rate x_0 + noise_rate epsilon: usually a timestep's, but some samplers stop between timesteps."""

    signal_rate: Tensor
    noise_rate: Tensor


Timesteps = float | Tensor | Level


class NoiseScheduler:
    """betas and alphas_cumprod, (T,) float32 on the CPU, and the formulas; `timesteps`: an int for all, or (b,)."""

    def __init__(self, config: SchedulerConfig | None = None):
        self.config = config or SchedulerConfig()
        self.betas = make_betas(self.config)
        self.alphas_cumprod = torch.cumprod(1.0 - self.betas, dim=0)

    def timesteps(self, num_inference_steps: int, spacing: str | None = None, skip_last: bool = False) -> list[int]:
        """The timesteps of a run, from noisy to clean (arXiv 2305.08891, table 2). "leading", the config's default:
        multiples of T // n plus `steps_offset`; "linspace": from T - 1 to 0; "trailing": from T - 1 down in strides of
        T / n. skip_last: space one step more and leave out the cleanest."""
        total, n = self.config.num_train_timesteps, num_inference_steps
        spacing, spaced = spacing or self.config.timestep_spacing or "leading", n + skip_last
        check("runs.checks:run_length", n, total - (spaced - n), spacing)
        if spacing == "leading":
            steps = np.arange(spaced)[::-1][:n] * (total // spaced) + self.config.steps_offset
        elif spacing == "linspace":
            steps = np.linspace(0, total - 1, spaced).round()[::-1][:n].astype(np.int64)
        else:  # [:n]: where total / n is not exact, the last stride may end just above zero.
            steps = np.round(np.arange(total, 0, -total / n)).astype(np.int64)[:n] - 1
        check("runs.checks:timesteps", torch.from_numpy(steps.copy()), total)
        return steps.tolist()

    def alpha_bar(self, timesteps: float | Tensor, like: Tensor | None = None) -> Tensor:
        """alpha-bar, 1 at timestep -1, shaped to multiply (b, c, h, w): () for one, (b, 1, 1, 1) for (b,). Between
        timesteps, where `samplers.ode` may stop, sqrt((1 - alpha-bar) / alpha-bar) lies on a straight line."""
        if isinstance(timesteps, float):
            check("runs.checks:timesteps", torch.tensor(int(timesteps)), len(self.alphas_cumprod))
            low, a = int(timesteps), self.alphas_cumprod[int(timesteps) : int(timesteps) + 2]
            return 1 / (1 + torch.lerp(*((1 - a) / a) ** 0.5, timesteps - low) ** 2)
        table = torch.cat([self.alphas_cumprod, torch.ones(1)])  # -1 is the last
        if isinstance(timesteps, Tensor) and like is not None:
            table = table.to(like.device, like.dtype)
        t = torch.as_tensor(timesteps).to(table.device)
        check("runs.checks:timesteps", t, len(self.alphas_cumprod))
        return table[t] if t.ndim == 0 else table[t][:, None, None, None]

    def level(self, timesteps: Timesteps, like: Tensor | None = None) -> Level:
        """sqrt(alpha-bar) and sqrt(1 - alpha-bar), shaped as by `alpha_bar`; a `Level` is returned as it is."""
        if isinstance(timesteps, Level):
            return timesteps
        a = self.alpha_bar(timesteps, like)
        return Level(a**0.5, (1 - a) ** 0.5)

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Timesteps) -> Tensor:
        """x_t = sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) epsilon   (DDPM, eq. 4; `002`, 4.3; 17 misprints it)"""
        level = self.level(timesteps, clean)
        return level.signal_rate * clean + level.noise_rate * noise

    def velocity(self, clean: Tensor, noise: Tensor, timesteps: Timesteps) -> Tensor:
        """v = sqrt(alpha-bar_t) epsilon - sqrt(1 - alpha-bar_t) x_0   (progressive distillation, arXiv 2202.00512)."""
        level = self.level(timesteps, clean)
        return level.signal_rate * noise - level.noise_rate * clean

    def target(self, clean: Tensor, noise: Tensor, timesteps: Timesteps) -> Tensor:
        """What the UNet should predict: noise, clean latents or velocity, by `prediction_type`."""
        if self.config.prediction_type == "v_prediction":
            return self.velocity(clean, noise, timesteps)
        return noise if self.config.prediction_type == "epsilon" else clean

    def clean_from_noise(self, latents: Tensor, noise: Tensor, timesteps: Timesteps) -> Tensor:
        """x_0 = (x_t - sqrt(1 - alpha-bar_t) epsilon) / sqrt(alpha-bar_t)   (DDPM, eq. 15; `002`, 6.5)."""
        level = self.level(timesteps, latents)
        return (latents - level.noise_rate * noise) / level.signal_rate

    def noise_from_clean(self, latents: Tensor, clean: Tensor, timesteps: Timesteps) -> Tensor:
        """epsilon = (x_t - sqrt(alpha-bar_t) x_0) / sqrt(1 - alpha-bar_t)."""
        level = self.level(timesteps, latents)
        return (latents - level.signal_rate * clean) / level.noise_rate

    def clean_from_velocity(self, latents: Tensor, velocity: Tensor, timesteps: Timesteps) -> Tensor:
        """x_0 = sqrt(alpha-bar_t) x_t - sqrt(1 - alpha-bar_t) v."""
        level = self.level(timesteps, latents)
        return level.signal_rate * latents - level.noise_rate * velocity

    def noise_from_velocity(self, latents: Tensor, velocity: Tensor, timesteps: Timesteps) -> Tensor:
        """epsilon = sqrt(alpha-bar_t) v + sqrt(1 - alpha-bar_t) x_t."""
        level = self.level(timesteps, latents)
        return level.signal_rate * velocity + level.noise_rate * latents

    def score_from_noise(self, noise: Tensor, timesteps: int | Tensor) -> Tensor:
        """The score grad_x log p_t(x) = -epsilon / sqrt(1 - alpha-bar_t), or -grad E where p_t ~ exp(-E)
        (arXiv 2011.13456; `003`, 11; exercise E4, question 1; `002`, 5.7, leaves the factor out)."""
        return -noise / (1 - self.alpha_bar(timesteps, noise)) ** 0.5

    def noise_from_score(self, score: Tensor, timesteps: int | Tensor) -> Tensor:
        """epsilon = -sqrt(1 - alpha-bar_t) score."""
        return -((1 - self.alpha_bar(timesteps, score)) ** 0.5) * score

    def clean_and_noise(self, output: Tensor, latents: Tensor, timesteps: Timesteps) -> tuple[Tensor, Tensor]:
        """The UNet's raw output, whatever it predicts, as (predicted clean latents, predicted noise)."""
        if self.config.prediction_type == "epsilon":
            return self.clean_from_noise(latents, output, timesteps), output
        if self.config.prediction_type == "sample":
            return output, self.noise_from_clean(latents, output, timesteps)
        clean = self.clean_from_velocity(latents, output, timesteps)
        return clean, self.noise_from_velocity(latents, output, timesteps)

    def posterior(self, clean: Tensor, latents: Tensor, t: int, previous: int, variance: str | float = 0.0) -> Any:
        """q(x_s | x_t, x_0) for a step from t to any earlier timestep s = `previous` (DDPM, eq. 6 and 7; -1: the end).

            alpha = alpha-bar_t / alpha-bar_s,   beta = 1 - alpha
            mean = sqrt(alpha-bar_s) beta / (1 - alpha-bar_t) x_0
                 + sqrt(alpha) (1 - alpha-bar_s) / (1 - alpha-bar_t) x_t

        Returns the mean and the variance ((1 - alpha-bar_s) / (1 - alpha-bar_t) beta)^(1 - v) beta^v (`001`, Algorithm
        2, line 5): "posterior" is v = 0, "beta" v = 1 (`002`, 5.2, misprints it: sigma_t^2 = beta_t, not sigma_t)."""
        alpha_bar_t, alpha_bar_s = self.alpha_bar(t), self.alpha_bar(previous)
        alpha = alpha_bar_t / alpha_bar_s
        beta = 1 - alpha
        clean_weight = (alpha_bar_s**0.5 * beta) / (1 - alpha_bar_t)
        latents_weight = alpha**0.5 * (1 - alpha_bar_s) / (1 - alpha_bar_t)
        v, least = VARIANCES.get(variance, variance), ((1 - alpha_bar_s) / (1 - alpha_bar_t) * beta).clamp(min=1e-20)
        return clean_weight * clean + latents_weight * latents, least ** (1 - v) * beta**v
