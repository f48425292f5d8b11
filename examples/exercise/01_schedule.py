"""Part 1: the noise schedule, and a picture with noise.

At step t the variance beta_t is added, and of what was there the share alpha_t = 1 - beta_t stays. After all steps
up to t

    alpha-bar_t = alpha_1 alpha_2 ... alpha_t
    x_t = sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) epsilon

is left of the clean latents x_0 in x_t. The notes count t = 1 .. T, the code 0 .. T - 1: entry 0 has one step of noise.

In the notes: `002` 4.1 and 4.3; `003` 1. Afterwards compare with `minti/diffusion/scheduler.py`.
Your picture: a toy at seven timesteps, from clean to noise.
"""

import torch
from torch import Tensor


def make_alphas_cumprod(betas: Tensor) -> Tensor:
    """alpha-bar of every timestep, (T,), from the betas, (T,)."""
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def add_noise(clean: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """x_t, (b, c, h, w): picture i at timestep timesteps[i].

    Args:
        clean, noise: x_0 and epsilon, (b, c, h, w).
        timesteps: (b,), whole numbers from 0 to T - 1.
        alphas_cumprod: (T,). What you take from it has to be shaped so that it multiplies each picture by its own.
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----
