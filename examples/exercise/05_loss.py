"""Part 5: the loss (exercise E4, task 1).

A picture is encoded by the VAE and scaled; noise is drawn and added, as much as belongs to a timestep; the network is
asked what was added, and told the timestep and the prompt:

    L = mean over everything of (epsilon - epsilon_theta(z_t, t, c))^2

In the notes: `000`, task 1; `002` 4.3; `003` 8 and 26. Afterwards compare with `diffusion_loss` in
`minti/learning/textual_inversion.py`, and `scale` in `minti/model.py`.
Your picture: the loss of a red diamond over timesteps, with its own words, with wrong ones and with none.
"""

from typing import Any

import torch
from torch import Tensor


def scaled_latents(encoded: Any, generator: torch.Generator, scaling_factor: float) -> Tensor:
    """Latents of about variance one, as the UNet knows them.

    Args:
        encoded: what the VAE's encoder gives; `encoded.sample(generator)` draws latents, (b, c, h, w), from it.
        scaling_factor: 0.18215 in SD v1.4, which the notes do not mention: the UNet's latents are the VAE's times this.
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def diffusion_loss(
    wrapper: Any, latents: Tensor, timestep_idx: Tensor, embeddings: Tensor, generator: torch.Generator
) -> Tensor:
    """The mean squared error, a tensor of shape (), with a gradient: something is to learn by it.

    Args:
        wrapper: has `wrapper.unet(noisy_latents, timesteps, embeddings)`, which gives the predicted noise, and
            `wrapper.scheduler.add_noise(clean, noise, timesteps)`.
        latents: (b, c, h, w), clean and scaled.
        timestep_idx: (b,).
        embeddings: (b, m, d), the encoded prompts.
        generator: draw the noise by torch.randn(..., generator=generator), in one call: then it can be checked.
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----
