"""The loss (E4, task 1; `002`, 4.3; `003`, 26): every diffusion model's, here minimised over a word's row v alone.

v* = argmin_v  E[ || epsilon - epsilon_theta(z_t, t, c(template with v)) ||^2 ]        (arXiv 2208.01618, eq. 2)
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from minti.learning.settings import TrainingWrapper
from minti.machine.noise import Generators, randn


def diffusion_loss(
    wrapper: TrainingWrapper,
    latents: Tensor,
    timestep_idx: Tensor,
    embeddings: Tensor,
    noise: Tensor | None = None,
    generator: Generators = None,
) -> Tensor:
    """The loss of a diffusion model: how well the UNet tells the noise from the picture (E4, task 1; DDPM, eq. 14).

    Args:
        latents: (b, c, h, w), clean and already scaled.
        timestep_idx: (b,), in [0, num_train_timesteps).
        embeddings: (b, m, d), the encoded prompts; E4's name for the context.
        noise: (b, c, h, w); drawn from `generator` when absent.

    Returns:
        The mean squared error, () float32.
    """
    if noise is None:
        noise = randn(latents.shape, generator, latents.device, latents.dtype)
    noisy_latents = wrapper.scheduler.add_noise(latents, noise, timestep_idx)
    prediction = wrapper.unet(noisy_latents, timestep_idx, embeddings)
    target = wrapper.scheduler.target(latents, noise, timestep_idx)
    return F.mse_loss(prediction.float(), target.float())
