"""The samplers: DDPM and DDIM; in `multistep` those that remember former steps, in `ode` those that follow the flow."""

from collections.abc import Iterator
from dataclasses import dataclass

from minti.diffusion.multistep import PNDM, DPMSolver
from minti.diffusion.ode import Euler, Heun
from minti.diffusion.scheduler import VARIANCES
from minti.diffusion.steps import Predict, Run, Sampler, SampleStep
from minti.machine.messages import shown
from minti.machine.noise import randn


@dataclass(frozen=True)
class DDPM(Sampler):
    """Ancestral sampling (arXiv 2006.11239, Algorithm 2; lecture notes `002`, 4.4; questions `003`, 2, 14 and 15).
    `variance`: "posterior" or "beta", see `NoiseScheduler.posterior`. Raises ValueError: another."""

    variance: str = "posterior"

    def __post_init__(self) -> None:
        if self.variance not in VARIANCES:
            raise ValueError(f"unknown variance {shown(self.variance)}; expected one of {VARIANCES}")

    def __call__(self, predict: Predict, run: Run) -> Iterator[SampleStep]:
        latents, scheduler = run.latents, run.scheduler
        for (t, level), (s, arrived) in run.legs:
            clean, _ = scheduler.clean_and_noise(predict(latents, t), latents, level)
            # x_s = mean + sigma z
            latents, sigma_squared = scheduler.posterior(clean, latents, t, s, self.variance)
            if t > 0:
                z = randn(latents.shape, run.generator, latents.device, latents.dtype)
                latents = latents + sigma_squared**0.5 * z
            latents = run.keep(latents, arrived)
            yield SampleStep(t, latents, clean)


@dataclass(frozen=True)
class DDIM(Sampler):
    """Denoising diffusion implicit models (arXiv 2010.02502, eq. 12 and 16; questions `003`, 4, 14 and 15).
    `eta`: from 0, deterministic, to 1, as noisy as DDPM. Raises ValueError: another."""

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta = {shown(self.eta)}; expected 0 (deterministic) to 1 (as noisy as ddpm)")

    def __call__(self, predict: Predict, run: Run) -> Iterator[SampleStep]:
        latents, scheduler = run.latents, run.scheduler
        for (t, level), (_, arrived) in run.legs:
            clean, noise = scheduler.clean_and_noise(predict(latents, t), latents, level)
            a_t, a_s = scheduler.alpha_bar(t), scheduler.alpha_bar(run.below(t))
            # sigma = eta sqrt((1 - a_s) / (1 - a_t)) sqrt(1 - a_t / a_s)
            sigma = self.eta * ((1 - a_s) / (1 - a_t) * (1 - a_t / a_s)) ** 0.5
            # x_s = sqrt(a_s) x_0 + sqrt(1 - a_s - sigma^2) epsilon + sigma z
            # With eta = 1 the second root may be that of zero, which rounding would make negative.
            latents = a_s**0.5 * clean + (1 - a_s - sigma**2).clamp(min=0) ** 0.5 * noise
            if self.eta > 0:
                latents = latents + sigma * randn(latents.shape, run.generator, latents.device, latents.dtype)
            latents = run.keep(latents, arrived)
            yield SampleStep(t, latents, clean)


SAMPLERS: dict[str, type[Sampler]] = {"ddpm": DDPM, "ddim": DDIM, "pndm": PNDM, "dpm-solver++": DPMSolver}
SAMPLERS |= {"euler": Euler, "heun": Heun}


def named(sampler: str | Sampler) -> Sampler:
    """The sampler of that name, with its own defaults (ValueError: there is none); a sampler is returned as it is."""
    if not isinstance(sampler, str):
        return sampler
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {shown(sampler)}; expected one of {', '.join(SAMPLERS)}")
    return SAMPLERS[sampler]()
