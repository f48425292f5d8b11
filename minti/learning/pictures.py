"""The pictures to learn from, as the loop needs them: encoded once, since neither they nor the VAE ever change."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from minti.images import to_pixels
from minti.model import StableDiffusion
from minti.networks.vae import DiagonalGaussian


class Concept:
    """What the VAE's encoder says of each picture, and of its mirror image.

    Args:
        images: pictures of any size, or pixels (n, 3, H, W) in [-1, 1].
        flip: whether to add the mirror images.

    Attributes:
        mean, logvar: (n, c, h, w), of the unscaled latents.
        fingerprint: tells other pictures apart.

    Raises:
        ValueError: there are no pictures.
    """

    @torch.no_grad()
    def __init__(self, model: StableDiffusion, images: Sequence[Image.Image] | Tensor, flip: bool = False):
        if len(images) == 0:
            raise ValueError("there are no pictures to learn from")
        if not isinstance(images, Tensor):
            images = torch.stack([to_pixels(image, model.resolution) for image in images])
        if flip:
            images = torch.cat([images, images.flip(-1)])
        self.fingerprint = hashlib.sha256(images.float().cpu().numpy().tobytes()).hexdigest()[:16]
        encoded = [model.encode(pixels) for pixels in images.split(1)]
        self.mean = torch.cat([gaussian.mean for gaussian in encoded])  # n c h w
        self.logvar = torch.cat([gaussian.logvar for gaussian in encoded])
        self._scale = model.scale

    def __len__(self) -> int:
        return len(self.mean)

    def draw(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Fresh scaled latents of some of the pictures, (b, c, h, w)."""
        return self._scale(DiagonalGaussian(self.mean[indices], self.logvar[indices]).sample(generator))
