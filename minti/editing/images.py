"""Images and masks for image to image, inpainting and outpainting, as latents."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from minti.images import to_pixels
from minti.model import StableDiffusion


@torch.no_grad()
def image_latents(model: StableDiffusion, image: Image.Image, height: int, width: int) -> Tensor:
    """An image as `init_latents`: cropped to height x width pixels and encoded, (1, c, h, w), scaled."""
    model.latents_shape(1, height, width)
    return model.scale(model.encode(to_pixels(image, (height, width))[None]).mean)


def latent_mask(mask: Image.Image, factor: int) -> Tensor:
    """A black and white image, `factor` pixels for each latent, as `mask`, (1, 1, h, w): a latent is sampled anew where
    any of its pixels is white."""
    pixels = torch.from_numpy(np.array(mask.convert("L"), dtype=np.float32))[None, None] / 255
    return F.max_pool2d(pixels, factor)


def fit_mask(mask: Image.Image, height: int, width: int) -> Image.Image:
    """A mask of any kind and size as black and white pixels, height x width; what is transparent is black."""
    return ImageOps.fit(on_black(mask).convert("L"), (width, height)).point(lambda value: 255 * (value > 127))


def on_black(image: Image.Image) -> Image.Image:
    """A mask or a hint with its transparency laid on black, which means "not here" in both."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA")).convert("RGB")
