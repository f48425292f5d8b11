"""The pictures to learn from, as the loop needs them, and a fixed set of them that measures progress."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from minti import distributed
from minti.images import to_pixels
from minti.learning.preparation import TrainingWrapper, diffusion_loss
from minti.model import StableDiffusion
from minti.networks.vae import DiagonalGaussian
from minti.noise import randn


class Concept:
    """The pictures as the loop needs them: what the VAE's encoder says of each, and of its mirror image.

    Args:
        images: pictures of any size, or pixels (n, 3, H, W) in [-1, 1].
        flip: whether to add the mirror images.
    """

    @torch.no_grad()
    def __init__(self, model: StableDiffusion, images: Sequence[Image.Image] | Tensor, flip: bool = False):
        if len(images) == 0:
            raise ValueError("there are no pictures to learn from")
        if not isinstance(images, Tensor):
            images = torch.stack([to_pixels(image, model.resolution) for image in images])
        if flip:
            images = torch.cat([images, images.flip(-1)])
        posteriors = [model.encode(pixels) for pixels in images.split(1)]
        self.mean = torch.cat([posterior.mean for posterior in posteriors])  # n c h w
        self.logvar = torch.cat([posterior.logvar for posterior in posteriors])
        self._sample_latents = model.sample_latents

    def __len__(self) -> int:
        return len(self.mean)

    def draw(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Fresh scaled latents of some of the pictures, (b, c, h, w)."""
        indices = indices.to(self.mean.device)
        return self._sample_latents(DiagonalGaussian(self.mean[indices], self.logvar[indices]), generator)


class FixedSet:
    """Pictures, timesteps and noise that stay the same, so that their loss shows the word and nothing else.

    "Is This Loss Informative?" (arXiv 2302.04841): with everything fixed, the loss is a smooth curve. The timesteps are
    spread evenly over the schedule; each picture is used about equally often.
    """

    def __init__(self, wrapper: TrainingWrapper, concept: Concept, size: int, generator: torch.Generator):
        self.wrapper = wrapper
        device, total = concept.mean.device, wrapper.scheduler.config.num_train_timesteps
        self.latents = concept.draw(torch.randperm(size, generator=generator) % len(concept), generator)
        self.timesteps = ((torch.arange(size, device=device) + 0.5) * total / size).long()
        self.noise = randn(self.latents.shape, generator, device, self.latents.dtype)

    @torch.no_grad()
    def loss(self, prompts: Sequence[str]) -> float:
        """The mean loss when picture i is described by prompt i, over and over."""
        size, batch_size = len(self.latents), self.wrapper.batch_size
        total = torch.zeros((), device=self.latents.device)
        for i in range(distributed.rank() * batch_size, size, distributed.world_size() * batch_size):
            part = slice(i, i + batch_size)
            context = self.wrapper.model.encode_prompt([prompts[j % len(prompts)] for j in range(size)[part]])
            loss = diffusion_loss(self.wrapper, self.latents[part], self.timesteps[part], context, self.noise[part])
            total += loss * len(context)
        return distributed.add_up(total).item() / size
