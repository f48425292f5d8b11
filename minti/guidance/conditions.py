"""Several prompts, masks, an interval and cached unconditional predictions: what `minti.sample` takes as `cfg`.

Scores are gradients of energies (slides `001`), and the score of a product of distributions is the sum of their scores,
p ~ p(x) prod_i (p(x | c_i) / p(x))^w_i (arXiv 2206.01714, eq. 11): exact at one level of noise, over a whole run not
quite, since adding noise and multiplying do not commute (arXiv 2302.11552)."""

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
    """A prompt's context, (b, m, d); its guidance weight, negative to lead away from it, or a function of the timestep;
    and its mask, (b or 1, 1, h, w) in [0, 1], or None: everywhere."""

    context: Tensor
    weight: Scale
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if not callable(self.weight):
            scale_at(self.weight, 0, "guidance_scale or weight")


def composed_guidance(network: Network, conditions: Sequence[Condition], negative: Tensor) -> Predict:
    """Composed guidance, uncond + sum_i w_i m_i (cond_i - uncond). (n + 1) B T evaluations for n prompts, B images, T
    timesteps; B T for a single prompt with weight 1 everywhere, where uncond cancels."""
    if len(conditions) == 1 and conditions[0].weight == 1 and conditions[0].mask is None:
        return conditional(network, conditions[0].context)
    everything = conditional(network, torch.cat([negative, *(condition.context for condition in conditions)]))

    def predict(latents: Tensor, t: float) -> Tensor:
        # One batch, as in diffusers: the unconditional part first.
        uncond, *conds = everything(torch.cat([latents] * (1 + len(conditions))), t).chunk(1 + len(conditions))
        output = uncond
        for condition, cond in zip(conditions, conds):
            push = scale_at(condition.weight, t) * (cond - uncond)
            if condition.mask is not None:
                push = expand(condition.mask, latents[:, :1].shape, "mask") * push
            output = output + push
        return output

    return predict


@dataclass(frozen=True)
class Conditions:
    """How predictions are combined: `minti.sample(model, prompts, cfg=Conditions(model, ...))`.

    extra_prompts: further prompts for every image, (prompt, weight) or (prompt, weight, mask); see `Condition`.
    interval: guidance between these timesteps only, both included (arXiv 2404.07724); None: always.
    refresh_every: computes the unconditional prediction in every k-th step only: B T (1 + 1 / k) evaluations."""

    model: StableDiffusion
    extra_prompts: Sequence[tuple[Any, ...]] = ()
    interval: tuple[int, int] | None = None
    refresh_every: int = 1

    def __post_init__(self) -> None:
        if self.refresh_every < 1:
            raise ValueError(f"refresh_every = {short_repr(self.refresh_every)}; expected 1 (always) or more")

    def __call__(self, network: Network, context: Tensor, negative: Tensor, scale: Scale) -> Predict:
        def condition(prompt: Prompts, weight: Scale, mask: Tensor | None = None) -> Condition:
            if mask is not None:
                mask = expand(mask, (len(context), 1, *mask.shape[-2:]), "mask").to(context)
            return Condition(encoded(self.model, prompt, context, "further prompts"), weight, mask)

        conditions = [Condition(context, scale), *(condition(*one) for one in self.extra_prompts)]
        cached = cached_unconditional(network, self.refresh_every, len(context))
        guided = composed_guidance(cached, conditions, negative)
        return in_interval(self.interval, guided, conditional(network, context))


def in_interval(interval: tuple[int, int] | None, inside: Predict, outside: Predict) -> Predict:
    """One prediction between two timesteps, both included, and another elsewhere."""
    low, high = interval or (float("-inf"), float("inf"))
    return lambda latents, t: (inside if low <= t <= high else outside)(latents, t)


def cached_unconditional(network: Network, every: int, images: int) -> Network:
    """Reuses the unconditional predictions, the first so many `images` of a batch, for k steps."""
    calls, kept = 0, torch.empty(0)

    def evaluate(latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        nonlocal calls, kept
        old = images if calls % every and len(latents) > images else 0
        outputs = network(latents[old:], timesteps[old:], context[old:])
        outputs = torch.cat([kept, outputs]) if old else outputs
        calls, kept = calls + 1, outputs[:images]
        return outputs

    return evaluate
