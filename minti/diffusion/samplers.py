"""The samplers: DDPM, DDIM forwards and backwards, PNDM; and which there are.

What all have in common stands in `trajectory`. Image to image begins late, with a picture that is noised to that level.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from minti.diffusion.dpm_solver import all_sigmas, dpm_solver, karras_sigmas, solver_levels
from minti.diffusion.scheduler import Level, NoiseScheduler
from minti.diffusion.trajectory import Predict, Sampler, SamplerStep
from minti.machine.noise import Generators, randn


def ddpm(
    predict: Predict,
    latents: Tensor,
    scheduler: NoiseScheduler,
    timesteps: list[int],
    generator: Generators = None,
    variance: str = "posterior",
    start: int = 0,
) -> Iterator[SamplerStep]:
    """Ancestral sampling (DDPM, arXiv 2006.11239, Algorithm 2), for any decreasing timesteps.

    Lecture notes `002`, 4.4; questions `003`, 2, 14 and 15.

    Args:
        latents: (b, c, h, w) standard normal noise, or what `add_noise` made for the timestep to begin at.
        timesteps: see `NoiseScheduler.timesteps`.
        variance: "posterior" or "beta"; see `NoiseScheduler.posterior`.
    """
    for t, previous in list(zip(timesteps, [*timesteps[1:], -1]))[start:]:
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
    start: int = 0,
) -> Iterator[SamplerStep]:
    """Denoising diffusion implicit models (arXiv 2010.02502, eq. 12 and 16; questions `003`, 4, 14 and 15).

    Args:
        eta: 0 is deterministic, 1 as noisy as DDPM.

    Raises:
        ValueError: eta is not between 0 and 1.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta = {eta}; expected 0 (deterministic) to 1 (as noisy as ddpm)")
    for t in timesteps[start:]:
        previous = _one_stride_down(t, scheduler, timesteps)
        a, a_previous = scheduler.alpha_bar(t), scheduler.alpha_bar(previous)
        clean, noise = predict(latents, t)
        # sigma = eta sqrt((1 - a_s) / (1 - a_t)) sqrt(1 - a_t / a_s)
        sigma = eta * ((1 - a_previous) / (1 - a) * (1 - a / a_previous)) ** 0.5
        # x_s = sqrt(a_s) x_0 + sqrt(1 - a_s - sigma^2) epsilon + sigma z
        # With eta = 1 the second root may be that of zero, which rounding would make negative.
        latents = a_previous**0.5 * clean + (1 - a_previous - sigma**2).clamp(min=0) ** 0.5 * noise
        if eta > 0:
            latents = latents + sigma * randn(latents.shape, generator, latents.device, latents.dtype)
        yield SamplerStep(t, latents, clean)


def _one_stride_down(t: int, scheduler: NoiseScheduler, timesteps: list[int]) -> int:
    """Where a step from t arrives: T // n below, as in diffusers' DDIM and PNDM; with "leading" the next timestep.

    The last step ends at -1, where alpha-bar is 1, or in SD at alpha-bar_0 (`set_alpha_to_one`).
    """
    stride = scheduler.config.num_train_timesteps // len(timesteps)
    return t - stride if t >= stride else (-1 if scheduler.config.set_alpha_to_one else 0)


def invert_ddim(
    predict: Predict, latents: Tensor, scheduler: NoiseScheduler, timesteps: list[int]
) -> Iterator[SamplerStep]:
    """DDIM backwards in time, from a clean picture's latents to the noise that DDIM would draw it from.

    The step from level s up to level t solves DDIM's update for x_t, with the prediction taken at x_s instead of x_t
    (questions `003`, 33; arXiv 2105.05233, appendix F).

    Args:
        timesteps: as for `ddim`; visited from the last to the first.
    """
    for t in reversed(timesteps):
        below = _one_stride_down(t, scheduler, timesteps)
        # The network is told the timestep it goes to; the latents are still at the level below.
        output = scheduler.target(*predict(latents, t), t)
        clean, noise = scheduler.clean_and_noise(output, latents, scheduler.level(below))
        latents = scheduler.add_noise(clean, noise, t)
        yield SamplerStep(t, latents, clean)


def pndm(
    predict: Predict,
    latents: Tensor,
    scheduler: NoiseScheduler,
    timesteps: list[int],
    generator: Generators = None,
    start: int = 0,
) -> Iterator[SamplerStep]:
    """Pseudo linear multistep (PNDM, arXiv 2202.09778), as SD v1.4 asks for it: no Runge-Kutta steps at first.

    Deterministic. The first step is taken twice, the second time with the mean of the predictions at its two ends, so
    that n steps cost n + 1 evaluations.

    Raises:
        ValueError: the run would begin at pure noise (zero terminal SNR), where the transfer of eq. 11 is undefined.
    """

    def transfer(latents: Tensor, output: Tensor, t: int) -> Tensor:
        _, noise = scheduler.clean_and_noise(output, latents, t)
        a, a_previous = scheduler.alpha_bar(t), scheduler.alpha_bar(_one_stride_down(t, scheduler, timesteps))
        # x_s = sqrt(a_s / a_t) x_t
        #     - (a_s - a_t) epsilon / (sqrt(a_t) (sqrt((1 - a_s) a_t) + sqrt((1 - a_t) a_s)))   (eq. 11)
        denominator = a * (1 - a_previous) ** 0.5 + (a * (1 - a) * a_previous) ** 0.5
        return (a_previous / a) ** 0.5 * latents - (a_previous - a) * noise / denominator

    if scheduler.alpha_bar(timesteps[start]) == 0:
        raise ValueError("pndm cannot begin at pure noise; use leading spacing, or ddpm, ddim or dpm-solver++")
    e: list[Tensor] = []  # the network's outputs, the latest first
    for visited in timesteps[start:]:
        t = visited
        clean, noise = predict(latents, t)
        e = [scheduler.target(clean, noise, t), *e[:3]]
        if len(e) == 1 and t != timesteps[-1]:
            below = timesteps[start + 1]
            at_other_end = scheduler.target(*predict(transfer(latents, e[0], t), below), below)
            output = (at_other_end + e[0]) / 2
            t = below + scheduler.config.num_train_timesteps // len(timesteps)  # as diffusers, for any spacing
        elif len(e) == 1:
            output = e[0]
        elif len(e) == 2:
            output = (3 * e[0] - e[1]) / 2
        elif len(e) == 3:
            output = (23 * e[0] - 16 * e[1] + 5 * e[2]) / 12
        else:  # Adams-Bashforth, eq. 12
            output = (1 / 24) * (55 * e[0] - 59 * e[1] + 37 * e[2] - 9 * e[3])
        latents = transfer(latents, output, t)
        yield SamplerStep(visited, latents, clean)


SAMPLERS: dict[str, Sampler] = {"ddpm": ddpm, "ddim": ddim, "pndm": pndm, "dpm-solver++": dpm_solver}


def run_timesteps(sampler: str, scheduler: NoiseScheduler, num_inference_steps: int, karras: bool = False) -> list[int]:
    """The timesteps of a run, spaced as the scheduler's config says, or else as is the sampler's custom.

    Raises:
        ValueError: unknown sampler; as `NoiseScheduler.timesteps`.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}; expected one of {', '.join(SAMPLERS)}")
    if sampler != "dpm-solver++":
        return scheduler.timesteps(num_inference_steps)
    if karras:
        log_sigmas = all_sigmas(scheduler).log().double().numpy()
        at = np.interp(np.log(karras_sigmas(scheduler, num_inference_steps)), log_sigmas, np.arange(len(log_sigmas)))
        return at.round().astype(np.int64).tolist()
    return scheduler.timesteps(num_inference_steps, scheduler.config.timestep_spacing or "linspace", skip_last=True)


def run_levels(sampler: str, scheduler: NoiseScheduler, timesteps: list[int], karras: bool = False) -> list[Level]:
    """The level of noise at which a run arrives at each of its timesteps."""
    if sampler == "dpm-solver++":
        return solver_levels(scheduler, timesteps, karras)[:-1]
    return [scheduler.level(t) for t in timesteps]
