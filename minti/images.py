"""Images to pixels and back: the transform of exercise E4."""

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from minti.utils import plugin


def to_pixels(image: Image.Image, size: int | tuple[int, int], flip: bool = False) -> Tensor:
    """The transform of exercise E4: resize the shorter side, crop the centre, optionally mirror, scale.
    `size`: (height, width), or one number for both. -> (3, height, width) float32 in [-1, 1]."""
    height, width = (size, size) if isinstance(size, int) else size
    image = ImageOps.exif_transpose(image)  # upright by its EXIF tag, which `open_image` has applied already
    rgb = image if image.mode == "RGB" else plugin("minti.formats.image_files:to_rgb")(image)
    fitted = ImageOps.fit(rgb, (width, height), Image.Resampling.BICUBIC)
    values = np.array(ImageOps.mirror(fitted) if flip else fitted)
    return from_bytes(torch.from_numpy(values).permute(2, 0, 1))  # h w c -> c h w


def from_bytes(values: Tensor) -> Tensor:
    """8-bit values, 0 to 255 in any dtype and shape, to float32 in [-1, 1]."""
    return values.float() / 127.5 - 1.0


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """(b, 3, H, W), clamped to [-1, 1], to 8-bit images."""
    unit = (pixels * 0.5 + 0.5).clamp(0, 1)
    arrays = unit.permute(0, 2, 3, 1).float().cpu().numpy()  # b h w c
    return [Image.fromarray(array) for array in (arrays * 255).round().astype(np.uint8)]
