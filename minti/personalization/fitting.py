"""Training images of any shape: cropped to a square (exercise E4), padded to one, or in buckets of aspect ratios."""

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minti.model import StableDiffusion

FITS = ("crop", "pad", "bucket")


def buckets(model: StableDiffusion) -> list[tuple[int, int]]:
    """Sizes, (height, width), of at most the model's own area and the largest of their width: multiples of the UNet's
    and VAE's strides (64 pixels in SD v1.4), half to twice its side (kohya's sd-scripts, `make_bucket_resolutions`)."""
    side = model.resolution
    step = model.vae.config.factor * 2 ** (len(model.unet.config.block_out_channels) - 1)
    least = max(step, side // 2 // step * step)
    sizes = [(height, side**2 // height // step * step) for height in range(least, 2 * side + 1, step)]
    return sorted({(side, side)} | {pair for h, w in sizes if w >= least for pair in ((h, w), (w, h))})


def bucket(image: Image.Image, sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """The size of the nearest aspect ratio, as diffusers' `find_nearest_bucket` has it (PR 11438): least |h w' - w h'|,
    where all areas are equal the least difference of the ratios' logarithms."""
    return min(sizes[::-1], key=lambda size: abs(image.height * size[1] - image.width * size[0]))


def within(image: Image.Image, model: StableDiffusion) -> tuple[int, int]:
    """The size, (height, width), of a whole image within the model's square, to the nearest latent: each of these is
    then either image or padding, and at most half of one is cut off."""
    factor, scale = model.vae.config.factor, model.resolution / max(image.size)
    return tuple(max(1, round(side * scale / factor)) * factor for side in (image.height, image.width))


def padded(x: Tensor, model: StableDiffusion, mode: str) -> Tensor:
    """A tensor (c, h, w) in the middle of the model's square, padded with zeros (`mode` "constant") or with its edges
    ("replicate"): the UNet sees padded pixels as context; white bars treble the toybox's loss within the image."""
    factor, side = model.vae.config.factor, model.resolution
    top, left = ((side - length) // 2 // factor * factor for length in x.shape[1:])
    return F.pad(x, (left, side - left - x.shape[2], top, side - top - x.shape[1]), mode=mode)
