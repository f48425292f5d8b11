"""Classifier-free guidance: how predictions with prompts and without combine; each function here makes a prediction.

Ho and Salimans (arXiv 2207.12598, Algorithm 2) write it with w = s - 1, as do the lecture notes `002`, 15, and the
slides `001`; with the guidance scale s it stands in `002`, 7.4, and `003`, 6. What it costs: exercise E4, question 2.

Several prompts: scores are gradients of energies (slides `001`), and the score of a product of distributions is the sum
of their scores, p ~ p(x) prod_i (p(x | c_i) / p(x))^w_i (arXiv 2206.01714, eq. 11): exact at one level of noise, over a
whole run not quite, since adding noise and multiplying do not commute (arXiv 2302.11552).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minti.diffusion.steps import Predict
from minti.machine.messages import shown

Strength = float | Callable[[int], float]  # a number, or a function of the timestep (arXiv 2404.13040)
Network = Callable[[Tensor, Tensor, Tensor], Tensor]  # (b, c, h, w), timesteps (b,), context (b, n, d) -> (b, c, h, w)


@dataclass(frozen=True)
class Pull:
    """A prompt that shapes a picture: its context, (b, n, d); how strongly it pulls, the guidance scale, negative where
    it pushes away, or a function of the timestep; and where, (b or 1, 1, h, w) in [0, 1], or None: everywhere.

    Raises ValueError: a weight that is no number, or with which every picture would overflow.
    """

    context: Tensor
    weight: Strength
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if not callable(self.weight):
            strength(self.weight, 0)


def strength(value: Strength, t: int, name: str = "guidance_scale or weight") -> float:
    """What a strength is at timestep t. Raises ValueError: it is no number, or every picture would overflow."""
    value = value(t) if callable(value) else value
    if not -1e6 <= value <= 1e6:
        raise ValueError(f"{name} = {shown(value)}; expected a number, usually 1 to 15")
    return value


def guided(network: Network, pulls: Sequence[Pull], negative_context: Tensor) -> Predict:
    """Away from the negative prompt, towards every prompt, by its weight and in its place.

        output = uncond + sum_i w_i m_i (cond_i - uncond)

    One prompt is plain guidance: 2 B T evaluations for B pictures and T timesteps, or B T where its weight is 1, which
    leaves cond alone. n prompts: (n + 1) B T.

    `negative_context`: (b, n, d), the encoded negative prompts; empty prompts make it the unconditional prediction.
    """
    if not unconditional_counts(pulls):
        return unguided(network, pulls[0].context)
    everything = unguided(network, torch.cat([negative_context, *(pull.context for pull in pulls)]))

    def predict(latents: Tensor, t: int) -> Tensor:
        # One batch, as in diffusers: the unconditional part first.
        uncond, *conds = everything(torch.cat([latents] * (1 + len(pulls))), t).chunk(1 + len(pulls))
        output = uncond
        for pull, cond in zip(pulls, conds):
            push = strength(pull.weight, t) * (cond - uncond)
            output = output + (push if pull.mask is None else pull.mask * push)
        return output

    return predict


def unguided(network: Network, context: Tensor) -> Predict:
    """The network's own answer to the context, (b, n, d)."""
    return lambda latents, t: network(latents, torch.full((len(latents),), t, device=latents.device), context)


def unconditional_counts(pulls: Sequence[Pull]) -> bool:
    """Not where one prompt pulls everywhere with weight 1: uncond + 1 (cond - uncond) = cond."""
    return len(pulls) > 1 or pulls[0].weight != 1 or pulls[0].mask is not None


def within(interval: tuple[int, int] | None, inside: Predict, outside: Predict) -> Predict:
    """One prediction between two timesteps, both included, and another elsewhere (arXiv 2404.07724); None: always."""
    low, high = interval or (float("-inf"), float("inf"))
    return lambda latents, t: (inside if low <= t <= high else outside)(latents, t)


def refreshed(network: Network, every: int, pictures: int) -> Network:
    """Computes the unconditional predictions in every k-th call and keeps them in between: B T (1 + 1 / k) evaluations.
    `pictures`: how many; in a batch of `guided` theirs come first. Raises ValueError: k is below 1."""
    if every < 1:
        raise ValueError(f"refresh_every = {shown(every)}; expected 1 (always) or more")
    calls, kept = 0, torch.empty(0)

    def evaluate(latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        nonlocal calls, kept
        old = pictures if calls % every and len(latents) > pictures else 0
        outputs = network(latents[old:], timesteps[old:], context[old:])
        outputs = torch.cat([kept, outputs]) if old else outputs
        calls, kept = calls + 1, outputs[:pictures]
        return outputs

    return evaluate


class Counted:
    """A network that counts the pictures that have gone through it."""

    def __init__(self, network: Network):
        self.network, self.evaluations = network, 0

    def __call__(self, latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        self.evaluations += len(latents)
        return self.network(latents, timesteps, context)
