"""Part 11: guidance by a gradient.

Whoever can say how well noisy latents fit a wish, log p(y | x_t), can steer towards it. By Bayes the score of what is
wished is the model's score plus that gradient, and a score is -epsilon / sqrt(1 - alpha-bar_t), so

    epsilon = epsilon_theta - s sqrt(1 - alpha-bar_t) grad log p(y | x_t)

In the notes: `002` 6.2; `003` 6, 11 and 37 (which has a plus); arXiv 2105.05233, Algorithm 2. Afterwards compare with
`noise_from_score` in `minti/diffusion/scheduler.py`, and with the room `minti.diffusion.gradients`.
Your picture: points drawn from a mixture of two Gaussians, guided to its left half, at the scales 0, 1 and 5.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def gradient_of(log_probability: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient of log p(y | x) for every picture of a batch, in the shape of x.

    A sampler calls this within `torch.no_grad()`: switch gradients on with `torch.enable_grad()`.

    Args:
        log_probability: (b, ...) -> (b,), one logarithm for each.
        x: (b, ...), the sampler's own; after the call it is as it was, without a gradient.
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def guided_noise(noise: Tensor, gradient: Tensor, alpha_bar: Tensor, scale: float) -> Tensor:
    """The prediction that is steered, in the shape of `noise`, the network's own.

    Args:
        gradient: grad log p(y | x_t), in the shape of `noise`.
        alpha_bar: of the timestep, ().
        scale: s.
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----
