"""Visual anagrams and hybrid images: a second prompt for the turned image, or for its fine detail.

Each function returns a `guidance` for `minti.sample`; `other` predicts by the second prompt, as from
`sampling.classifier_free_guidance`. Both are linear in the predictions and leave x_t as it is, so that they are right
for v, (epsilon - sqrt(1 - alpha-bar) x_t) / sqrt(alpha-bar), too."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from minti.denoising import Predict
from minti.guidance.gradients import Guidance
from minti.runs.messages import short_repr


class View(NamedTuple):
    """A view of an image, (..., h, w), and its inverse; it must be orthogonal, as everything that only moves pixels, so
    that white noise stays white (arXiv 2311.17919, section 3)."""

    turn: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]


VIEWS = {
    "half": View(lambda x: x.rot90(2, (-1, -2)), lambda x: x.rot90(2, (-1, -2))),
    "quarter": View(lambda x: x.rot90(1, (-1, -2)), lambda x: x.rot90(-1, (-1, -2))),  # clockwise
    "mirror": View(lambda x: x.flip(-1), lambda x: x.flip(-1)),
}


def anagram(other: Predict, view: View) -> Guidance:
    """A visual anagram: an image of one prompt and, turned, of the other (arXiv 2311.17919, section 3).

    epsilon = (epsilon(x_t, one) + v^-1(epsilon(v(x_t), other))) / 2
    """
    return lambda predict: lambda latents, t: (predict(latents, t) + view.back(other(view.turn(latents), t))) / 2


def hybrid(other: Predict, sigma: float) -> Guidance:
    """A hybrid image: one prompt from afar, the other from near (arXiv 2404.11615, section 3).

        epsilon = G(epsilon(x_t, one)) + epsilon(x_t, other) - G(epsilon(x_t, other))

    `sigma`: the width of the Gaussian blur G, in latents."""
    if not sigma > 0:
        raise ValueError(f"sigma = {short_repr(sigma)}; expected more than 0, in latents")

    def mixed(predict: Predict, latents: Tensor, t: int) -> Tensor:
        fine = other(latents, t)
        return fine + blurred(predict(latents, t) - fine, sigma)

    return lambda predict: partial(mixed, predict)


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of width sigma, whose weights sum to 1 at the edges too: (b, c, h, w)."""

    def weights(n: int) -> Tensor:
        apart = torch.arange(n, device=x.device) - torch.arange(n, device=x.device)[:, None]
        return (-0.5 * (apart / sigma) ** 2).softmax(dim=1).to(x)  # n n

    return weights(x.shape[-2]) @ x @ weights(x.shape[-1]).T
