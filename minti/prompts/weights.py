"""Prompt weights in contexts: the rules of AUTOMATIC1111 and of compel, (n, m, d) with weights (m, 1) to (n, m, d)."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Chunk(NamedTuple):
    """At most 75 tokens, for each the number of its part, and the weights of all parts of the prompt."""

    ids: Sequence[int] = ()
    parts: Sequence[int] = ()
    weights: Sequence[float] = ()


def a1111(context: Tensor, weights: Tensor, *others: object) -> Tensor:
    """AUTOMATIC1111's "Original": z w, scaled so that the mean over tokens and channels is that of z again.
    Raises ValueError: the mean has all but vanished, so that this would scale without measure."""
    scaled = a1111_no_norm(context, weights)
    mean = context.mean(dim=(1, 2), keepdim=True)  # n 1 1
    ratio, mend = mean / scaled.mean(dim=(1, 2), keepdim=True), "take the weights 'a1111-no-norm' or 'compel'"
    least, most = ratio.min().item(), ratio.max().item()
    if not 0.1 < least <= most < 10:
        much = f"{least if least <= 0.1 else most:.3g} times"
        raise ValueError(f"A1111's rule would scale this prompt's context {much} to restore its mean; {mend}")
    if (mean.abs() < 0.01 * context.std()).any():
        what = f"the contexts of this model have hardly a mean, {mean.mean():.1g} of {context.std():.1g}"
        warnings.warn(f"{what}, which A1111's rule restores by scaling them {most:.3g} times; {mend}", stacklevel=2)
    return scaled * ratio


def a1111_no_norm(context: Tensor, weights: Tensor, *others: object) -> Tensor:
    """AUTOMATIC1111's "No norm": z w."""
    return context * weights


def compel(context: Tensor, weights: Tensor, chunk: Chunk, without: Callable[[int], Tensor], empty: Tensor) -> Tensor:
    """compel's rule, with z_0 = `empty`, (n, m, d), the context of the empty prompt, and for every part i of the prompt
    with a weight w_i below 1, z_i = `without(i)`, where no token sees those of the part:

    z' = (f(z) + sum_i s_i f(z_i)) / (1 + sum_i s_i),  f(z) = z_0 + w (z - z_0),  s_i = tan((1 - w_i) pi / 2)

    In a chunk that has nothing of part i, z_i = z."""

    def towards(z: Tensor) -> Tensor:
        return torch.where(weights == 1, z, empty + weights * (z - empty))

    context = plain = towards(context)
    strengths = {i: math.tan((1 - max(w, 1e-5)) * math.pi / 2) for i, w in enumerate(chunk.weights) if w < 1}
    for i, strength in strengths.items():
        context = context + strength * (towards(without(i)) if i in chunk.parts else plain)
    return context / (1 + sum(strengths.values()))


RULES = {"a1111": a1111, "a1111-no-norm": a1111_no_norm, "compel": compel}
