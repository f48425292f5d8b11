"""What a sampler is: it takes a trajectory from noise to a picture, one yield a step.

A sampler asks `predict(latents, t)` for (predicted clean latents, predicted noise), takes a step, and yields. Progress
bars, previews and early stopping belong to whoever iterates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

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


# (predict, latents, scheduler, timesteps, generator, start=0, **options): all take the timesteps of a whole run, and
# begin at number `start` of them.
Sampler = Callable[..., Iterator[SamplerStep]]
