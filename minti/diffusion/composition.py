"""Several prompts in one picture: each pulls with its own weight, and in its own place.

With scores as gradients of energies (slides `001`), the score of a product of distributions is the sum of their
scores. Classifier-free guidance with several prompts (arXiv 2206.01714, eq. 11) is

    output = uncond + sum_i w_i m_i (cond_i - uncond),      p ~ p(x) prod_i (p(x | c_i) / p(x))^w_i

with m_i = 1 where no mask is given. A negative weight removes what its prompt says. At one level of noise this is
exact; over a whole run it is not quite the product, since adding noise and multiplying do not commute (arXiv
2302.11552).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from minti.diffusion.guidance import GuidedPrediction, check_scale


class Pull(NamedTuple):
    """A prompt beside the first one.

    Attributes:
        context: (b, m, d), the encoded prompts.
        weight: how strongly it pulls, on the scale of `guidance_scale`; negative: pushes away.
        mask: (b or 1, 1, h, w) in [0, 1], where it pulls; None: everywhere.
    """

    context: Tensor
    weight: float
    mask: Tensor | None = None


@dataclass
class ComposedPrediction(GuidedPrediction):
    """`GuidedPrediction` with further prompts: B (n + 1) T evaluations for n prompts in each of B pictures.

    The first prompt's weight is `guidance_scale`. Alone, it makes the same numbers as `GuidedPrediction`, bit for bit.

    Attributes:
        also: the other prompts.

    Raises:
        ValueError: a weight that is no number, or together with an approximation of `GuidedPrediction`.
    """

    also: Sequence[Pull] = ()

    def __post_init__(self) -> None:
        if self.refresh_every != 1 or self.interval is not None or self.last_is_unconditional:
            raise ValueError(
                "also= asks for every prediction in every step; leave out refresh_every, guidance_interval and "
                "share_unconditional"
            )
        super().__post_init__()
        for pull in self.also:
            check_scale("the weight of a further prompt", pull.weight)

    def __call__(self, latents: Tensor, t: int) -> Tensor:
        """(b, c, h, w) latents at timestep t -> (b, c, h, w) composed raw output."""
        pulls = [Pull(self.context, self.guidance_scale), *self.also]
        which = self._distinct(latents) if self._calls == 0 else list(range(len(latents)))
        chosen = sorted(set(which))
        context = torch.cat([self.negative_context[chosen], *(pull.context for pull in pulls)])
        output = self._evaluate(torch.cat([latents[chosen], *[latents] * len(pulls)]), t, context)
        uncond, *conds = output.split([len(chosen), *[len(latents)] * len(pulls)])
        if len(chosen) < len(latents):
            uncond = uncond[[chosen.index(i) for i in which]]
        self._calls += 1
        return composed(uncond, conds, pulls)


def composed(uncond: Tensor, conds: Sequence[Tensor], pulls: Sequence[Pull]) -> Tensor:
    """The formula: (b, c, h, w) predictions without a prompt and with each -> (b, c, h, w)."""
    output = uncond
    for cond, pull in zip(conds, pulls):
        push = pull.weight * (cond - uncond)
        output = output + (push if pull.mask is None else pull.mask * push)
    return output
