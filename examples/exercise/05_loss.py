"""Part 5: the diffusion loss (exercise E4, task 1).

The VAE encodes an image, and its latents are scaled. Noise is sampled and added, as much as the timestep says; the
network gets the noisy latents, the timestep and the prompt, and predicts that noise:

    L = mean of (epsilon - epsilon_theta(z_t, t, c))^2, over the batch and all numbers of the latents

In the notes: exercise E4 `000`, task 1; lecture notes `002`, 4.3; of `003` question 8, "Describe the VAE
encoder-decoder in latent space", and 26, "Describe the training objective and loss functions". Afterwards compare with
`diffusion_loss` in `minti/textual_inversion.py`, and `scale` in `minti/model.py`.
Your image: the loss of images of a red diamond over the timesteps, with the right prompt, a wrong one and an empty one.
"""

from typing import Any

import torch
from torch import Tensor


def scaled_latents(encoded: Any, generator: torch.Generator, scaling_factor: float) -> Tensor:
    """Scaled latents with a variance of about 1, as the UNet expects them.

    Args:
        encoded: the VAE encoder's output, a distribution; `encoded.sample(generator)` samples latents, (b, c, h, w).
        scaling_factor: 0.18215 in SD v1.4, which the notes do not mention: the UNet's latents are the VAE's times this.
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def diffusion_loss(
    wrapper: Any, latents: Tensor, timestep_idx: Tensor, embeddings: Tensor, generator: torch.Generator
) -> Tensor:
    """The mean squared error of the predicted noise, a tensor of shape (), with a gradient: training needs it.

    Args:
        wrapper: has `wrapper.unet(noisy_latents, timesteps, embeddings)`, which returns the predicted noise, and
            `wrapper.scheduler.add_noise(clean, noise, timesteps)`.
        latents: (b, c, h, w), clean and scaled.
        timestep_idx: (b,).
        embeddings: (b, m, d), the encoded prompts.
        generator: sample the noise with one call of torch.randn(..., generator=generator), so that it can be checked.
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----
