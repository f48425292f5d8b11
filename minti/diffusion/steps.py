"""What a run is: a sampler walks down its stops, asks `predict` at each, and yields. Progress bars, previews and
early stopping belong to whoever iterates."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from minti.diffusion.scheduler import Level, NoiseScheduler
from minti.machine.noise import Generators

# latents (b, c, h, w) at timestep t -> raw output of the network, (b, c, h, w)
Predict = Callable[[Tensor, float], Tensor]
Keep = Callable[[Tensor, Level], Tensor]  # latents (b, c, h, w) that arrive at a level -> those that go on from there


class Stop(NamedTuple):
    """The timestep that the network is told (-1 at the end; a few samplers stop between two), and how noisy the latents
    are."""

    timestep: float
    level: Level


@dataclass(frozen=True)
class Run:
    """What is drawn, apart from `predict`.

    Attributes:
        latents: (b, c, h, w), standard normal noise, or what `add_noise` made for the level to begin at.
        stops: from noisy to clean, n + 1 for n steps, as the sampler gives them.
        start: the number of the stop to begin at.
        keep: applied wherever latents arrive, so that a part of them can be held fast.
    """

    latents: Tensor
    scheduler: NoiseScheduler
    stops: list[Stop]
    generator: Generators = None
    start: int = 0
    keep: Keep = lambda latents, level: latents

    @property
    def legs(self) -> Iterator[tuple[Stop, Stop]]:
        """From each stop to the next one."""
        return pairwise(self.stops[self.start :])

    def below(self, t: int) -> int:
        """Where a step from t arrives: T // n below, as in diffusers' DDIM and PNDM; with "leading" the next stop.

        The last step ends at -1, where alpha-bar is 1, or in SD at alpha-bar_0 (`set_alpha_to_one`).
        """
        config = self.scheduler.config
        stride = config.num_train_timesteps // (len(self.stops) - 1)
        return t - stride if t >= stride else (-1 if config.set_alpha_to_one else 0)


class SampleStep(NamedTuple):
    """Where a run is after a step.

    Attributes:
        timestep: the one that was left.
        latents: (b, c, h, w), scaled; (b, 4, 64, 64) in SD v1.4.
        clean: the same without noise, as predicted at `timestep`; good for a preview.
        evaluations: how many pictures have gone through the network so far; `sample_steps` counts them.
    """

    timestep: float
    latents: Tensor
    clean: Tensor
    evaluations: int = 0


class Sampler:
    """Takes a run from noise to a picture, one yield a step; its fields are its options."""

    def stops(self, scheduler: NoiseScheduler, num_inference_steps: int) -> list[Stop]:
        """The n + 1 stops of a run of n steps; the last is the clean picture."""
        return [Stop(t, scheduler.level(t)) for t in [*scheduler.timesteps(num_inference_steps), -1]]

    def __call__(self, predict: Predict, run: Run) -> Iterator[SampleStep]:
        raise NotImplementedError
