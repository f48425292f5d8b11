"""Classifier-free guidance: how the predictions with and without the prompt combine, and when one can be kept.

Ho and Salimans (arXiv 2207.12598), Algorithm 2; lecture notes `002`, 6.2.2; slides `001`; exercise E4, question 2.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from minti.networks.unet import UNet


@dataclass
class GuidedPrediction:
    """The UNet's raw output for a batch, pushed away from the negative prompt.

        output = uncond + s (cond - uncond)

    s is `guidance_scale`; the w of the paper is s - 1. For B prompts and T timesteps this costs 2 B T evaluations. At
    s = 1 the formula is the conditional prediction alone, and the other is not computed: B T. The unconditional
    prediction depends on latents, timestep and negative prompt only: where these agree for several pictures (in the
    first step from one shared noise) it is computed once, 2 B T - (B - 1) in all, and differs in rounding only.

    The rest are approximations, off by default.

    Attributes:
        context: (b, n, d), the encoded prompts.
        negative_context: (b, n, d), the encoded negative prompts; empty prompts make it the unconditional prediction.
        refresh_every: compute the unconditional prediction in every k-th step and keep it in between: B T (1 + 1 / k).
        interval: (low, high): guide between these timesteps, both included, and nowhere else (arXiv 2404.07724).
        last_is_unconditional: the batch's last picture follows the negative prompt alone, and its prediction serves as
            the unconditional one of all the others: T (B + 1) for B other pictures.
        evaluations: how many pictures have gone through the UNet so far.
    """

    unet: UNet
    context: Tensor
    negative_context: Tensor
    guidance_scale: float
    refresh_every: int = 1
    interval: tuple[int, int] | None = None
    last_is_unconditional: bool = False
    evaluations: int = field(default=0, init=False)
    _calls: int = field(default=0, init=False)
    _kept: Tensor | None = field(default=None, init=False)

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
            self._kept = uncond if self.refresh_every > 1 else None
        self._calls += 1
        return uncond + self.guidance_scale * (cond - uncond)

    def _distinct(self, latents: Tensor) -> list[int]:
        """For each picture the first one that has the same latents and the same negative prompt."""

        def same(i: int, j: int) -> bool:
            negative = self.negative_context
            return torch.equal(latents[i], latents[j]) and torch.equal(negative[i], negative[j])

        return [next(j for j in range(i + 1) if same(i, j)) for i in range(len(latents))]

    def _evaluate(self, latents: Tensor, t: int, context: Tensor) -> Tensor:
        self.evaluations += len(latents)
        timesteps = torch.full((len(latents),), t, device=latents.device)
        return self.unet(latents, timesteps, context)
