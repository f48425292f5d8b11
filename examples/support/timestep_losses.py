"""The diffusion loss over timesteps, of several prompts: where on the schedule a word helps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from minti.model import StableDiffusion
from minti.textual_inversion import diffusion_loss


@torch.no_grad()
def loss_over_timesteps(
    model: StableDiffusion, latents: Tensor, prompts: Sequence[str], timesteps: Sequence[int], noise: Tensor
) -> Tensor:
    """The diffusion loss of each prompt at each timestep, (prompts, timesteps) float32, with the same noise for all.
    `latents`, `noise`: (n, c, h, w), clean and scaled."""
    losses = torch.zeros(len(prompts), len(timesteps))
    for i, prompt in enumerate(prompts):
        context = model.encode_prompt(prompt).expand(len(latents), -1, -1)
        for j, t in enumerate(timesteps):
            steps = torch.full((len(latents),), t, device=latents.device)
            losses[i, j] = diffusion_loss(model, latents, steps, context, noise)
    return losses
