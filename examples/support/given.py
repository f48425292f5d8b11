"""What a drawing is given by files: a picture to begin with, and masks; as `minti.editing` takes them."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

import minti
from minti.images import to_pixels


@torch.no_grad()
def picture_latents(model: minti.StableDiffusion, picture: Image.Image, height: int, width: int) -> Tensor:
    """A picture as `init_latents`: cropped to height x width pixels and encoded, (1, c, h, w), scaled.

    Raises ValueError: a size that is no multiple of the VAE's factor.
    """
    model.latents_shape(1, height, width)
    return model.scale(model.encode(to_pixels(picture, (height, width))[None]).mean)


def latent_mask(mask: Image.Image, factor: int) -> Tensor:
    """A black and white picture as `mask`, (1, 1, h, w): a latent is drawn anew where any of its pixels is white.

    Args:
        mask: (h * factor) x (w * factor) pixels.
        factor: how many pixels a latent is wide.
    """
    pixels = torch.from_numpy(np.array(mask.convert("L"), dtype=np.float32))[None, None] / 255
    return F.max_pool2d(pixels, factor)


def fit_mask(mask: Image.Image, height: int, width: int) -> Image.Image:
    """A mask of any kind and size as black and white pixels, height x width."""
    return ImageOps.fit(mask.convert("L"), (width, height)).point(lambda value: 255 * (value > 127))
