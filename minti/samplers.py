"""How a trajectory from noise to a picture is integrated: each sampler is a generator function.

A sampler asks `predict(latents, t)` for (predicted clean latents, predicted noise), takes a step, and yields. Progress
bars, previews and early stopping belong to whoever iterates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from minti.noise import Generators, randn
from minti.scheduler import NoiseScheduler

Predict = Callable[[Tensor, int], tuple[Tensor, Tensor]]


class SamplerStep(NamedTuple):
    """Where a sampler is after a step.

    Attributes:
        timestep: the timestep that was left.
        latents: (b, c, h, w), after the step.
        clean: (b, c, h, w), the clean latents that were predicted at `timestep`.
    """

    timestep: int
    latents: Tensor
    clean: Tensor


def ddpm(
    predict: Predict,
    latents: Tensor,
    scheduler: NoiseScheduler,
    timesteps: list[int],
    generator: Generators = None,
    variance: str = "posterior",
) -> Iterator[SamplerStep]:
    """Ancestral sampling (DDPM, arXiv 2006.11239, Algorithm 2), for any decreasing timesteps.

    Args:
        latents: (b, c, h, w) standard normal noise.
        timesteps: see `NoiseScheduler.timesteps`.
        variance: "posterior" or "beta"; see `NoiseScheduler.posterior`.
    """
    for t, previous in zip(timesteps, [*timesteps[1:], -1]):
        clean, _ = predict(latents, t)
        mean, sigma_squared = scheduler.posterior(clean, latents, t, previous, variance)
        latents = mean
        if t > 0:  # x_s = mean + sigma z
            latents = mean + sigma_squared**0.5 * randn(mean.shape, generator, mean.device, mean.dtype)
        yield SamplerStep(t, latents, clean)


def ddim(
    predict: Predict,
    latents: Tensor,
    scheduler: NoiseScheduler,
    timesteps: list[int],
    generator: Generators = None,
    eta: float = 0.0,
) -> Iterator[SamplerStep]:
    """Denoising diffusion implicit models (arXiv 2010.02502, eq. 12 and 16).

    Args:
        eta: 0 is deterministic, 1 as noisy as DDPM.
    """
    stride = scheduler.config.num_train_timesteps // len(timesteps)
    end = -1 if scheduler.config.set_alpha_to_one else 0  # SD ends at alpha-bar_0, not at 1
    for t in timesteps:
        # diffusers steps by T // n whatever the spacing; for "leading" this is the next timestep.
        previous = t - stride if t >= stride else end
        a, a_previous = scheduler.alpha_bar(t), scheduler.alpha_bar(previous)
        clean, noise = predict(latents, t)
        # sigma = eta sqrt((1 - a_s) / (1 - a_t)) sqrt(1 - a_t / a_s)
        sigma = eta * ((1 - a_previous) / (1 - a) * (1 - a / a_previous)) ** 0.5
        # x_s = sqrt(a_s) x_0 + sqrt(1 - a_s - sigma^2) epsilon + sigma z
        latents = a_previous**0.5 * clean + (1 - a_previous - sigma**2) ** 0.5 * noise
        if eta > 0:
            latents = latents + sigma * randn(latents.shape, generator, latents.device, latents.dtype)
        yield SamplerStep(t, latents, clean)


SAMPLERS = {"ddpm": ddpm, "ddim": ddim}
