"""The diffusion loss over timesteps: where on the schedule a word helps, compared with others in its place."""

from collections.abc import Sequence

import torch
from torch import Tensor

from minti.model import StableDiffusion
from minti.textual_inversion import diffusion_loss


@torch.no_grad()
def loss_over_timesteps(
    model: StableDiffusion, latents: Tensor, prompts: Sequence[str], timesteps: Sequence[int], noise: Tensor
) -> Tensor:
    """The mean squared error of the UNet's answers for each prompt at each timestep, (prompts, timesteps) float32.

    At small t the picture itself says what the noise is, at large t nobody can know; in between the prompt helps.

    `latents`, `noise`: (n, c, h, w), clean and scaled; the same noise for every prompt and timestep.
    """
    losses = torch.zeros(len(prompts), len(timesteps))
    for i, prompt in enumerate(prompts):
        context = model.encode_prompt(prompt).expand(len(latents), -1, -1)
        for j, t in enumerate(timesteps):
            steps = torch.full((len(latents),), t, device=latents.device)
            losses[i, j] = diffusion_loss(model, latents, steps, context, noise)
    return losses
