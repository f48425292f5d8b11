"""Part 2: a step of DDPM, and a step of DDIM.

With the network's prediction epsilon of the noise in x_t, DDPM goes to the timestep before,

    x_{t-1} = (x_t - beta_t / sqrt(1 - alpha-bar_t) epsilon) / sqrt(alpha_t) + sigma_t z,      sigma_t^2 = beta_t

with fresh noise z, but none in the last step, at t = 0. DDIM goes to any earlier timestep s, without fresh noise: it
predicts the clean latents, and puts the same noise back at the level of s,

    x_0 = (x_t - sqrt(1 - alpha-bar_t) epsilon) / sqrt(alpha-bar_t)
    x_s = sqrt(alpha-bar_s) x_0 + sqrt(1 - alpha-bar_s) epsilon

In the notes: `002` 4.4 and 6.5; `003` 2, 4 and 15. Afterwards compare with `minti/diffusion/samplers.py`, and
`NoiseScheduler.posterior`, which allows DDPM larger steps, too.
Your picture: four toys, drawn with your step of DDIM.
"""

import torch
from torch import Tensor


def ddpm_step(latents: Tensor, noise: Tensor, z: Tensor, t: int, betas: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """x_{t-1}, (b, c, h, w).

    Args:
        latents, noise, z: x_t, the predicted epsilon and fresh standard normal noise, (b, c, h, w).
        t: from 0 to T - 1; at 0 the result is the clean picture.
        betas, alphas_cumprod: (T,).
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def ddim_step(latents: Tensor, noise: Tensor, t: int, s: int, alphas_cumprod: Tensor) -> Tensor:
    """x_s, (b, c, h, w).

    Args:
        latents, noise: x_t and the predicted epsilon, (b, c, h, w).
        t, s: from 0 to T - 1, s < t; s = -1 is the clean picture, where alpha-bar is 1.
        alphas_cumprod: (T,).
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----
