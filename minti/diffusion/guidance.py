"""Classifier-free guidance: how the predictions with and without the prompt combine, and when one can be kept.

Ho and Salimans (arXiv 2207.12598), Algorithm 2. The formula stands with the guidance scale s in the lecture notes
`002`, 7.4, and in the questions `003`, 6; with the paper's w = s - 1 in `002`, 15, and on the slides `001`. What it
costs, and what of it can be kept: exercise E4, question 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from minti.diffusion.scheduler import NoiseScheduler
from minti.diffusion.trajectory import Predict, Sampler, SamplerStep
from minti.machine.messages import shown
from minti.machine.noise import Generators

Network = Callable[[Tensor, Tensor, Tensor], Tensor]


def check_scale(name: str, scale: float) -> None:
    """Refuses a weight that is no number, or with which every picture would overflow.

    Raises:
        ValueError: it is not between minus and plus a million.
    """
    if not -1e6 <= scale <= 1e6:
        raise ValueError(f"{name} = {shown(scale)}; expected a number, usually between 1 and 15")


@dataclass
class GuidedPrediction:
    """The network's raw output for a batch, pushed away from the negative prompt.

        output = uncond + s (cond - uncond)

    s is `guidance_scale`. For B prompts and T timesteps this costs 2 B T evaluations. Two savings are exact:

    - At s = 1 only the conditional prediction is left, and the other is not computed: B T.
    - The unconditional prediction depends on latents, timestep and negative prompt only. Where pictures agree in these
      (in the first step from one shared noise) it is computed once for all: 2 B T - (B - 1). Only rounding differs.

    `refresh_every`, `interval` and `last_is_unconditional` save more, but approximate; they are off by default.

    Attributes:
        network: (latents, timesteps, context) -> raw output; shapes (b, c, h, w), (b,), (b, m, d) -> (b, c, h, w).
        context: (b, m, d), the encoded prompts.
        negative_context: (b, m, d), the encoded negative prompts; empty prompts make it the unconditional prediction.
        refresh_every: compute the unconditional prediction in every k-th step and keep it in between: B T (1 + 1 / k).
        interval: (low, high): guide between these timesteps, both included, and nowhere else (arXiv 2404.07724).
        last_is_unconditional: the latents come with one picture more, the last, which follows the negative prompt
            alone; its prediction serves as the unconditional one of all the others (`shared_trajectory`): T (B + 1).
        evaluations: how many pictures have gone through the network so far.

    Raises:
        ValueError: a scale that is no number, a refresh below 1, or one unconditional picture for several negative
            prompts.
    """

    network: Network
    context: Tensor
    negative_context: Tensor
    guidance_scale: float
    refresh_every: int = 1
    interval: tuple[int, int] | None = None
    last_is_unconditional: bool = False
    evaluations: int = field(default=0, init=False)
    _calls: int = field(default=0, init=False)
    _kept: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        check_scale("guidance_scale", self.guidance_scale)
        if self.refresh_every < 1:
            raise ValueError(f"refresh_every = {self.refresh_every}; expected 1 (always) or more")
        if self.last_is_unconditional:
            if not (self.negative_context == self.negative_context[:1]).all():
                raise ValueError("share_unconditional needs one negative prompt for all pictures")
            self.context = torch.cat([self.context, self.negative_context[:1]])

    def __call__(self, latents: Tensor, t: int) -> Tensor:
        """(b, c, h, w) latents at timestep t -> (b, c, h, w) guided raw output."""
        guided = self.guidance_scale != 1 and (self.interval is None or self.interval[0] <= t <= self.interval[1])
        if not guided:
            return self._evaluate(latents, t, self.context)
        if self.last_is_unconditional:
            cond = self._evaluate(latents, t, self.context)
            uncond = cond[-1:]
        elif self._kept is not None and self._calls % self.refresh_every:
            cond, uncond = self._evaluate(latents, t, self.context), self._kept
        else:
            # One batch of 2 b: the unconditional half first; pictures that agree in everything share an entry of it.
            which = self._distinct(latents) if self._calls == 0 else list(range(len(latents)))
            chosen = sorted(set(which))
            context = torch.cat([self.negative_context[chosen], self.context])
            output = self._evaluate(torch.cat([latents[chosen], latents]), t, context)
            uncond, cond = output.split([len(chosen), len(latents)])
            if len(chosen) < len(latents):
                uncond = uncond[[chosen.index(i) for i in which]]
            self._kept = uncond
        self._calls += 1
        return uncond + self.guidance_scale * (cond - uncond)

    def _distinct(self, latents: Tensor) -> list[int]:
        """For each picture the first one that has the same latents and the same negative prompt."""

        def same(i: int, j: int) -> bool:
            negative = self.negative_context
            return i == j or (torch.equal(latents[i], latents[j]) and torch.equal(negative[i], negative[j]))

        return [next(j for j in range(i + 1) if same(i, j)) for i in range(len(latents))]

    def _evaluate(self, latents: Tensor, t: int, context: Tensor) -> Tensor:
        self.evaluations += len(latents)
        timesteps = torch.full((len(latents),), t, device=latents.device)
        return self.network(latents, timesteps, context)


def shared_trajectory(sampler: Sampler) -> Sampler:
    """The sampler, with one picture more: it begins at the same noise and is the unconditional one of all the others.

    Raises:
        ValueError: the pictures begin at different noise.
    """

    def run(
        predict: Predict,
        latents: Tensor,
        scheduler: NoiseScheduler,
        timesteps: list[int],
        generator: Generators = None,
        **options: Any,
    ) -> Iterator[SamplerStep]:
        if not (latents == latents[:1]).all():
            raise ValueError("share_unconditional needs the same initial noise for all pictures")
        if isinstance(generator, Sequence):
            generator = [*generator, generator[0].clone_state()]
        latents = torch.cat([latents, latents[:1]])
        for step in sampler(predict, latents, scheduler, timesteps, generator, **options):
            yield SamplerStep(step.timestep, step.latents[:-1], step.clean[:-1])

    return run
