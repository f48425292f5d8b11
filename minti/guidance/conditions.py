"""Several prompts, masks, an interval and cached unconditional predictions: what `minti.sample` takes as `cfg`.

Scores are gradients of energies (slides `001`), and the score of a product of distributions is the sum of their scores,
p ~ p(x) prod_i (p(x | c_i) / p(x))^w_i (arXiv 2206.01714, eq. 11): exact at one level of noise, over a whole run not
quite, since adding noise and multiplying do not commute (arXiv 2302.11552).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minti.denoising import Predict
from minti.model import StableDiffusion
from minti.runs.messages import short_repr
from minti.sampling import Network, Prompts, Scale, conditional, encoded, expand, scale_at


@dataclass(frozen=True)
class Condition:
    """A prompt with its guidance weight and mask: its context, (b, n, d); the weight, negative to lead away from it, or
    a function of the timestep; and where it acts, (b or 1, 1, h, w) in [0, 1], or None: everywhere.

    Raises ValueError: a weight that is no number, or with which every image would overflow.
    """

    context: Tensor
    weight: Scale
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if not callable(self.weight):
            scale_at(self.weight, 0, "guidance_scale or weight")


def composed_guidance(network: Network, conditions: Sequence[Condition], negative: Tensor) -> Predict:
    """Composed guidance: away from the negative prompt, towards every prompt, by its weight and where its mask says.

        output = uncond + sum_i w_i m_i (cond_i - uncond)

    (n + 1) B T evaluations for n prompts, B images and T timesteps; B T where a single weight is 1.
    """
    if cancels(conditions):
        return conditional(network, conditions[0].context)
    everything = conditional(network, torch.cat([negative, *(condition.context for condition in conditions)]))

    def predict(latents: Tensor, t: float) -> Tensor:
        # One batch, as in diffusers: the unconditional part first.
        uncond, *conds = everything(torch.cat([latents] * (1 + len(conditions))), t).chunk(1 + len(conditions))
        output = uncond
        for condition, cond in zip(conditions, conds):
            push = scale_at(condition.weight, t) * (cond - uncond)
            masked = condition.mask is not None
            output = output + (expand(condition.mask, latents[:, :1].shape, "mask") * push if masked else push)
        return output

    return predict


def cancels(conditions: Sequence[Condition]) -> bool:
    """Whether the unconditional prediction cancels: a single prompt with weight 1 everywhere."""
    return len(conditions) == 1 and conditions[0].weight == 1 and conditions[0].mask is None


@dataclass(frozen=True)
class Conditions:
    """How `minti.sample` combines predictions: `minti.sample(model, prompts, cfg=Conditions(model, ...))`.

    Attributes:
        extra_prompts: further prompts for every image, (prompt, weight) or (prompt, weight, mask); see `Condition`.
        interval: guidance between these timesteps only, both included (arXiv 2404.07724); None: always.
        refresh_every: the unconditional prediction is computed in every k-th step and reused in between:
            B T (1 + 1 / k) evaluations.

    Raises ValueError: a weight, mask or number that cannot be.
    """

    model: StableDiffusion
    extra_prompts: Sequence[tuple[Any, ...]] = ()
    interval: tuple[int, int] | None = None
    refresh_every: int = 1

    def __post_init__(self) -> None:
        if self.refresh_every < 1:
            raise ValueError(f"refresh_every = {short_repr(self.refresh_every)}; expected 1 (always) or more")

    def __call__(self, network: Network, context: Tensor, negative: Tensor, scale: Scale) -> Predict:
        """The prediction of guidance with all prompts."""
        extra = (extra_condition(self.model, context, *one) for one in self.extra_prompts)
        conditions = [Condition(context, scale), *extra]
        guided = composed_guidance(
            cached_unconditional(network, self.refresh_every, len(context)), conditions, negative
        )
        return in_interval(self.interval, guided, conditional(network, context))


def extra_condition(
    model: StableDiffusion, like: Tensor, prompt: Prompts, weight: Scale, mask: Tensor | None = None
) -> Condition:
    """A prompt beside the first one, whose context is `like`."""
    if mask is not None:
        mask = expand(mask, (len(like), 1, *mask.shape[-2:]), "mask").to(like)
    return Condition(encoded(model, prompt, like, "further prompts"), weight, mask)


def in_interval(interval: tuple[int, int] | None, inside: Predict, outside: Predict) -> Predict:
    """One prediction between two timesteps, both included, and another elsewhere; None: always the first."""
    low, high = interval or (float("-inf"), float("inf"))
    return lambda latents, t: (inside if low <= t <= high else outside)(latents, t)


def cached_unconditional(network: Network, every: int, images: int) -> Network:
    """Reuses the unconditional predictions for k steps. `images`: how many; in a batch theirs come first."""
    calls, kept = 0, torch.empty(0)

    def evaluate(latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        nonlocal calls, kept
        old = images if calls % every and len(latents) > images else 0
        outputs = network(latents[old:], timesteps[old:], context[old:])
        outputs = torch.cat([kept, outputs]) if old else outputs
        calls, kept = calls + 1, outputs[:images]
        return outputs

    return evaluate
