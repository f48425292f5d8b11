"""What a drawing is given by files: a picture to begin with, and masks; as `minti.editing` takes them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

import minti
from minti.editing.inversion import inverted_noise
from minti.formats.image_files import open_image
from minti.images import to_pixels

HALVES = {"left": (0, 0, 0.5, 1), "right": (0.5, 0, 1, 1), "top": (0, 0, 1, 0.5), "bottom": (0, 0.5, 1, 1)}


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


def where_mask(where: str, height: int, width: int) -> Image.Image:
    """A half of the picture by its name, or the mask in a file, as black and white pixels, height x width."""
    if where not in HALVES:
        return fit_mask(open_image(Path(where)), height, width)
    mask = Image.new("L", (width, height))
    mask.paste(255, tuple(round(part * side) for part, side in zip(HALVES[where], 2 * (width, height))))
    return mask


class Edit:
    """A picture to begin with, at random or inverted, and the mask of what is drawn anew; nothing where none is named.

    Attributes:
        options: of `minti.sample`.
    """

    def __init__(self, args: argparse.Namespace, model: minti.StableDiffusion):
        self.options: dict[str, Any] = {}
        self.picture = self.mask = None
        path = args.init_image or args.invert
        if not path:
            return
        height, width = args.height or model.resolution, args.width or model.resolution
        self.picture = ImageOps.fit(open_image(path), (width, height), Image.Resampling.BICUBIC)
        self.options["init_latents"] = picture_latents(model, self.picture, height, width)
        self.options["strength"] = (1.0 if args.mask else 0.8) if args.strength is None else args.strength
        if args.invert:
            # From there the picture's own prompt leads back to it; another one edits it.
            strength = self.options["strength"] = 1.0 if args.strength is None else args.strength
            along = (args.source, args.steps, strength)
            self.options["latents"] = inverted_noise(model, self.options["init_latents"], *along)
        if args.mask:
            self.mask = fit_mask(open_image(args.mask), height, width)
            self.options["mask"] = latent_mask(self.mask, model.vae.config.factor)

    def keep(self, drawn: Image.Image) -> Image.Image:
        """The drawing with the kept part of the picture put back, which the VAE would have blurred."""
        return drawn if self.mask is None else Image.composite(drawn, self.picture, self.mask)
