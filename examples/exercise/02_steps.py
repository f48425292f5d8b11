"""Part 2: one denoising step of DDPM, and one of DDIM.

The network predicts epsilon, the noise in x_t. DDPM goes to the timestep before, with fresh standard normal noise z,
but without it in the last step, at t = 0:

    x_{t-1} = (x_t - beta_t / sqrt(1 - alpha-bar_t) epsilon) / sqrt(alpha_t) + sigma_t z,      sigma_t^2 = beta_t

DDIM goes to any earlier timestep s without fresh noise: it predicts the clean latents, and adds the same noise again at
the level of s:

    x_0 = (x_t - sqrt(1 - alpha-bar_t) epsilon) / sqrt(alpha-bar_t)
    x_s = sqrt(alpha-bar_s) x_0 + sqrt(1 - alpha-bar_s) epsilon

In the notes: lecture notes `002`, 4.4 and 6.5; of `003` question 2, "Describe the reverse diffusion and denoising
process", 4, "Describe DDIM (Denoising Diffusion Implicit Models) advantages", and 15, "Compare deterministic vs.
stochastic sampling". Afterwards compare with `DDPM` and `DDIM` in `minti/denoising.py`, and with
`NoiseScheduler.posterior` in `minti/scheduler.py`, with which DDPM can take larger steps.
Your image: four toys, sampled with your DDIM step.
"""

import torch
from torch import Tensor


def ddpm_step(latents: Tensor, noise: Tensor, z: Tensor, t: int, betas: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """DDPM's x_{t-1}, (b, c, h, w).

    Args:
        latents, noise, z: x_t, the predicted epsilon and fresh standard normal noise, (b, c, h, w).
        t: from 0 to T - 1; the step from 0 ends at the clean image.
        betas, alphas_cumprod: (T,).
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def ddim_step(latents: Tensor, noise: Tensor, t: int, s: int, alphas_cumprod: Tensor) -> Tensor:
    """DDIM's x_s, (b, c, h, w).

    Args:
        latents, noise: x_t and the predicted epsilon, (b, c, h, w).
        t, s: from 0 to T - 1, with s < t; s = -1 is the clean image, where alpha-bar is 1.
        alphas_cumprod: (T,).
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----
