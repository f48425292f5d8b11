"""Part 1: the noise schedule, and adding noise to an image: the forward process.

Each step keeps the fraction alpha_t = 1 - beta_t of the variance and adds beta_t of noise. After t steps:

    alpha-bar_t = alpha_1 alpha_2 ... alpha_t
    x_t = sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) epsilon

x_0 are the clean latents, epsilon is standard normal noise. The notes count t = 1 .. T, the code 0 .. T - 1: entry 0
has one step of noise.

In the notes: lecture notes `002`, 4.1 and 4.3; question 1 of `003`, "Explain the forward diffusion process and noise
scheduling". Afterwards compare with `minti/scheduler.py`: `NoiseScheduler`.
Your image: a toy at seven timesteps, from nearly clean to pure noise.
"""

import torch
from torch import Tensor


def make_alphas_cumprod(betas: Tensor) -> Tensor:
    """The cumulative products alpha-bar of all timesteps, (T,), from the betas, (T,)."""
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def add_noise(clean: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """The noisy latents x_t, (b, c, h, w): image i of the batch at timestep timesteps[i].

    Args:
        clean, noise: x_0 and epsilon, (b, c, h, w).
        timesteps: (b,), whole numbers from 0 to T - 1.
        alphas_cumprod: (T,). Reshape the entries that you take from it to (b, 1, 1, 1), so that they broadcast.
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----
