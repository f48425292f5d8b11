"""Part 11: classifier guidance, by a gradient.

A classifier of noisy latents says how well they fit a target class y: log p(y | x_t). By Bayes' rule the score given y
is the model's score plus the gradient of that; and a score is -epsilon / sqrt(1 - alpha-bar_t). So, with a scale s,

    epsilon = epsilon_theta - s sqrt(1 - alpha-bar_t) grad log p(y | x_t)

In the notes: lecture notes `002`, 6.2; of `003` question 6, "Describe classifier guidance vs. classifier-free
guidance", 11, "Describe noise prediction vs. score matching", and 37, "Explain safe completions via policy guidance"
(which has a misprint: a plus); arXiv 2105.05233, Algorithm 2. Afterwards compare with `noise_from_score` in
`minti/scheduler.py`, and with `minti/guidance/gradients.py`.
Your image: points sampled from a mixture of two Gaussians, guided to its left half, at the scales 0, 1 and 5.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def gradient_of(log_probability: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient of log p(y | x) with respect to x, for every image of a batch, in the shape of x.

    A sampler calls this within `torch.no_grad()`: switch gradients on with `torch.enable_grad()`.

    Args:
        log_probability: (b, ...) -> (b,), one log-probability for each image.
        x: (b, ...), which belongs to the sampler: it must be unchanged after the call, and without a gradient.
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def guided_noise(noise: Tensor, gradient: Tensor, alpha_bar: Tensor, scale: float) -> Tensor:
    """The guided prediction of the noise, in the shape of `noise`, which is the network's own prediction.

    Args:
        gradient: grad log p(y | x_t), in the shape of `noise`.
        alpha_bar: of the timestep, ().
        scale: s.
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----
