"""Visual anagrams and hybrid images: a second prompt that sees the latents turned, or that counts in fine detail only.

Each function gives what `minti.sample` takes as `guidance`; `other` predicts by the second prompt, as
`sampling.classifier_free_guidance` does. Both are linear in the predictions and leave x_t as it is, so that they do to
v, which is (epsilon - sqrt(1 - alpha-bar) x_t) / sqrt(alpha-bar), what the papers do to epsilon.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from minti.denoising import Predict
from minti.guidance.gradients import Guidance
from minti.runs.messages import short_repr


class View(NamedTuple):
    """Another view of an image, (..., h, w), and the way back. It must be orthogonal, as is all that only moves
    pixels: then white noise stays white (arXiv 2311.17919, section 3)."""

    turn: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]


def quarters(n: int) -> View:
    """n quarter turns, clockwise."""
    return View(lambda x: x.rot90(n, (-1, -2)), lambda x: x.rot90(-n, (-1, -2)))


VIEWS = {"half": quarters(2), "quarter": quarters(1), "mirror": View(lambda x: x.flip(-1), lambda x: x.flip(-1))}


def anagram(other: Predict, view: View) -> Guidance:
    """A visual anagram: an image of one prompt that, turned, is one of the other (arXiv 2311.17919, section 3).

    epsilon = (epsilon(x_t, one) + v^-1(epsilon(v(x_t), other))) / 2
    """
    return lambda predict: lambda latents, t: (predict(latents, t) + view.back(other(view.turn(latents), t))) / 2


def hybrid(other: Predict, sigma: float) -> Guidance:
    """A hybrid image: of one prompt from afar, of the other from near (arXiv 2404.11615, section 3).

        epsilon = G(epsilon(x_t, one)) + epsilon(x_t, other) - G(epsilon(x_t, other))

    `sigma`: the width of the Gaussian G, in latents. Raises ValueError: it is not above 0.
    """
    if not sigma > 0:
        raise ValueError(f"sigma = {short_repr(sigma)}; expected more than 0, in latents")

    def guidance(predict: Predict) -> Predict:
        def mixed(latents: Tensor, t: int) -> Tensor:
            fine = other(latents, t)
            return fine + blurred(predict(latents, t) - fine, sigma)

        return mixed

    return guidance


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Blurred by a Gaussian of width sigma, whose weights sum to 1 at the edges too: (b, c, h, w)."""

    def weights(n: int) -> Tensor:
        apart = torch.arange(n, device=x.device) - torch.arange(n, device=x.device)[:, None]
        return (-0.5 * (apart / sigma) ** 2).softmax(dim=1).to(x)  # n n

    return weights(x.shape[-2]) @ x @ weights(x.shape[-1]).T
