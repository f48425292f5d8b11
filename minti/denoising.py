"""Samplers: DDPM and DDIM, and what every sampler gets and gives (lecture notes `002`, 4.4 and 6.5)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from minti.scheduler import Level, NoiseScheduler
from minti.utils import Generators, check, plugin, randn

Predict = Callable[[Tensor, float], Tensor]  # latents (b, c, h, w) at timestep t -> the network's raw output
Keep = Callable[[Tensor, Level], Tensor]  # latents (b, c, h, w) at a noise level -> those that the run goes on from


class Stop(NamedTuple):
    """A timestep as the network gets it (-1: the clean image; some samplers stop between two), and its noise level."""

    timestep: float
    level: Level


@dataclass(frozen=True)
class Run:
    """All that a sampler needs besides `predict`: noise, or latents noised to stop `start`; n + 1 stops; `keep`."""

    latents: Tensor
    scheduler: NoiseScheduler
    stops: list[Stop]
    generator: Generators = None
    start: int = 0
    keep: Keep = lambda latents, level: latents

    @property
    def intervals(self) -> Iterator[tuple[Stop, Stop]]:
        """From each stop to the next one."""
        return pairwise(self.stops[self.start :])

    def prev_timestep(self, t: int) -> int:
        """Where DDIM's step from t ends, as in diffusers: at t - T // n; the last at -1 or 0 (`set_alpha_to_one`)."""
        config = self.scheduler.config
        stride = config.num_train_timesteps // (len(self.stops) - 1)
        return t - stride if t >= stride else (-1 if config.set_alpha_to_one else 0)


class SampleStep(NamedTuple):
    """A denoising step: its timestep, the latents after it, the clean latents predicted, network evaluations so far."""

    timestep: float
    latents: Tensor
    clean: Tensor
    evaluations: int = 0


class Sampler:
    """Takes a run from noise to an image, one yield a step; its fields are its options."""

    def stops(self, scheduler: NoiseScheduler, num_inference_steps: int) -> list[Stop]:
        """The n + 1 stops of a run of n steps; the last is the clean image."""
        return [Stop(t, scheduler.level(t)) for t in [*scheduler.timesteps(num_inference_steps), -1]]

    def __call__(self, predict: Predict, run: Run) -> Iterator[SampleStep]:
        raise NotImplementedError


@dataclass(frozen=True)
class DDPM(Sampler):
    """Ancestral sampling (arXiv 2006.11239, Algorithm 2; lecture notes `002`, 4.4; questions `003`, 2, 14 and 15).
    `variance`: "posterior", "beta" or a number between, 0 to 1, see `NoiseScheduler.posterior`."""

    variance: str | float = "posterior"

    def __post_init__(self) -> None:
        check("runs.checks:variance", self.variance)

    def __call__(self, predict: Predict, run: Run) -> Iterator[SampleStep]:
        latents, scheduler = run.latents, run.scheduler
        for (t, level), (s, next_level) in run.intervals:
            clean, _ = scheduler.clean_and_noise(predict(latents, t), latents, level)
            # x_s = mean + sigma z
            latents, sigma_squared = scheduler.posterior(clean, latents, t, s, self.variance)
            if t > 0:
                z = randn(latents.shape, run.generator, latents.device, latents.dtype)
                latents = latents + sigma_squared**0.5 * z
            latents = run.keep(latents, next_level)
            yield SampleStep(t, latents, clean)


@dataclass(frozen=True)
class DDIM(Sampler):
    """Denoising diffusion implicit models (arXiv 2010.02502, eq. 12 and 16; questions `003`, 4, 14 and 15).
    `eta`: from 0, deterministic, to 1, as noisy as DDPM."""

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta = {self.eta!r}; expected 0 (deterministic) to 1 (as noisy as ddpm)")

    def __call__(self, predict: Predict, run: Run) -> Iterator[SampleStep]:
        latents, scheduler = run.latents, run.scheduler
        for (t, level), (_, next_level) in run.intervals:
            clean, noise = scheduler.clean_and_noise(predict(latents, t), latents, level)
            a_t, a_s = scheduler.alpha_bar(t), scheduler.alpha_bar(run.prev_timestep(t))
            # sigma = eta sqrt((1 - a_s) / (1 - a_t)) sqrt(1 - a_t / a_s)
            sigma = self.eta * ((1 - a_s) / (1 - a_t) * (1 - a_t / a_s)) ** 0.5
            # x_s = sqrt(a_s) x_0 + sqrt(1 - a_s - sigma^2) epsilon + sigma z
            # With eta = 1 the second root may be that of zero, which rounding would make negative.
            latents = a_s**0.5 * clean + (1 - a_s - sigma**2).clamp(min=0) ** 0.5 * noise
            if self.eta > 0:
                latents = latents + sigma * randn(latents.shape, run.generator, latents.device, latents.dtype)
            latents = run.keep(latents, next_level)
            yield SampleStep(t, latents, clean)


SAMPLERS: dict[str, type[Sampler] | str] = {"ddpm": DDPM, "ddim": DDIM}  # or "module:class", imported when it is used
SAMPLERS |= {"pndm": "minti.samplers.multistep:PNDM", "dpm-solver++": "minti.samplers.multistep:DPMSolver"}
SAMPLERS |= {"euler": "minti.samplers.ode:Euler", "heun": "minti.samplers.ode:Heun"}
SAMPLERS |= {"lcm": "minti.samplers.few_step:LCM", "tcd": "minti.samplers.few_step:TCD"}


def make_sampler(sampler: str | Sampler) -> Sampler:
    """The sampler of that name, with its own defaults; a sampler is returned as it is."""
    if not isinstance(sampler, str):
        return sampler
    check("runs.messages:check_choice", "sampler", sampler, list(SAMPLERS))
    return (plugin(kind) if isinstance(kind := SAMPLERS[sampler], str) else kind)()
