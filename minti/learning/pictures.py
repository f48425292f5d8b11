"""The pictures to learn from, as the loop needs them: encoded once, since neither they nor the VAE ever change."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minti.images import opacity, to_pixels
from minti.machine.noise import randn
from minti.model import StableDiffusion
from minti.networks.vae import DiagonalGaussian
from minti.templates import said_of

Images = Sequence[Image.Image] | Tensor  # of any size, or pixels (n, 3, H, W) in [-1, 1]


class Batch(NamedTuple):
    """What a forward pass learns from: latents and noise (b, c, h, w), timesteps (b,), prompts; pictures' numbers;
    masks (b, 1, h, w) in [0, 1], where it learns, or None: everywhere."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    prompts: list[str]
    numbers: list[int]
    masks: Tensor | None = None

    def __str__(self) -> str:
        return ", ".join(f"picture {i} at timestep {t}" for i, t in zip(self.numbers, self.timesteps.tolist()))


class Concept:
    """What the VAE's encoder says of each picture, and with `flip` of its mirror image: mean and logvar, (n, c, h, w);
    with `masked` also where it is opaque, `masks`, (n, 1, h, w). Raises ValueError: no pictures, or see `opacity`.
    """

    @torch.no_grad()
    def __init__(self, model: StableDiffusion, images: Images, flip: bool = False, masked: bool = False):
        if len(images) == 0:
            raise ValueError("there are no pictures to learn from")
        masks = opacity(images, model.resolution, flip) if masked else None  # n 1 H W
        if not isinstance(images, Tensor):
            images = torch.stack([to_pixels(image, model.resolution) for image in images])
        if flip:
            images = torch.cat([images, images.flip(-1)])
        # Of the pictures themselves: what the VAE makes of them has other last bits on another machine.
        self.fingerprint = hashlib.sha256(images.float().cpu().numpy().tobytes()).hexdigest()[:16]
        encoded = [model.encode(pixels) for pixels in images.split(1)]
        self.mean = torch.cat([gaussian.mean for gaussian in encoded])  # n c h w
        self.logvar = torch.cat([gaussian.logvar for gaussian in encoded])
        self.masks = None if masks is None else F.avg_pool2d(masks, model.vae.config.factor).to(self.mean)
        self.scale, self.num_train_timesteps = model.scale, model.scheduler.config.num_train_timesteps

    def __len__(self) -> int:
        return len(self.mean)

    def latents(self, numbers: Tensor, generator: torch.Generator) -> Tensor:
        """Fresh scaled latents of some of the pictures, (b, c, h, w)."""
        return self.scale(DiagonalGaussian(self.mean[numbers], self.logvar[numbers]).sample(generator))

    def batch(self, size: int, prompts: Sequence[str], generator: torch.Generator) -> Batch:
        """Pictures, prompts, timesteps and noise, each drawn by itself."""
        numbers = torch.randint(len(self), (size,), generator=generator)
        latents = self.latents(numbers, generator)
        said = said_of(numbers, prompts, torch.randint(len(prompts), (size,), generator=generator))
        timesteps = torch.randint(self.num_train_timesteps, (size,), generator=generator).to(latents.device)
        noise = randn(latents.shape, generator, latents.device, latents.dtype)
        masks = None if self.masks is None else self.masks[numbers]
        return Batch(latents, noise, timesteps, said, numbers.tolist(), masks)
