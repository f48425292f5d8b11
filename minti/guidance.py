"""Classifier-free guidance: how the predictions with and without the prompt combine.

Ho and Salimans (arXiv 2207.12598), Algorithm 2; lecture notes `002`, 6.2.2; slides `001`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from minti.unet import UNet


@dataclass
class GuidedPrediction:
    """The UNet's raw output for a batch, pushed away from the negative prompt.

        output = uncond + s (cond - uncond)

    s is `guidance_scale`; the w of the paper is s - 1. At s = 1 the formula is the conditional prediction alone, and
    the unconditional one is not computed: B evaluations per timestep instead of 2 B (exercise E4, question 2).

    Attributes:
        context: (b, n, d), the encoded prompts.
        negative_context: (b, n, d), the encoded negative prompts; empty prompts make it the unconditional prediction.
        evaluations: how many pictures have gone through the UNet so far.
    """

    unet: UNet
    context: Tensor
    negative_context: Tensor
    guidance_scale: float
    evaluations: int = field(default=0, init=False)

    def __call__(self, latents: Tensor, t: int) -> Tensor:
        """(b, c, h, w) latents at timestep t -> (b, c, h, w) guided raw output."""
        if self.guidance_scale == 1:
            return self._evaluate(latents, t, self.context)
        # One batch of 2 b: the unconditional half first.
        context = torch.cat([self.negative_context, self.context])
        uncond, cond = self._evaluate(torch.cat([latents, latents]), t, context).chunk(2)
        return uncond + self.guidance_scale * (cond - uncond)

    def _evaluate(self, latents: Tensor, t: int, context: Tensor) -> Tensor:
        self.evaluations += len(latents)
        timesteps = torch.full((len(latents),), t, device=latents.device)
        return self.unet(latents, timesteps, context)
