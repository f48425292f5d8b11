"""Learned words inside images, as AUTOMATIC1111 shares them: in a text of the PNG, or in the pixels' low bits."""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from minti.runs.messages import one_line

TEXT = "sd-ti-embedding"
MOST = 2**27  # bytes of JSON
MOST_PIXELS = 2**24


def read(path: Path) -> Any:
    """What an image holds: the same as AUTOMATIC1111's `.pt`. Raises ValueError: nothing, or it is damaged."""
    try:
        with Image.open(path, formats=("PNG", "WEBP")) as image:
            text = getattr(image, "text", {}).get(TEXT)
            return json.loads(base64.b64decode(text) if text else from_pixels(image), object_hook=as_tensor)
    except Exception as error:  # Pillow, zlib, json and base64 fail in all manners
        raise ValueError(f"{path} is an image without a whole learned word in it ({one_line(error)})") from None


def as_tensor(content: dict[str, Any]) -> Any:
    """Tensors are written as {"TORCHTENSOR": nested lists}."""
    return torch.tensor(content["TORCHTENSOR"], dtype=torch.float32) if "TORCHTENSOR" in content else content


def from_pixels(image: Image.Image) -> bytes:
    """JSON, compressed: on the left of the picture a block with the low four bits of every byte, on its right one with
    the high four, each next to a black column; a sequence of random bits lies over both."""
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"over {MOST_PIXELS:,} pixels")
    pixels = np.asarray(image.convert("RGB"))  # h w 3
    light = (pixels > 0).all(2)
    (rows,), (columns,) = light.any(1).nonzero(), light.any(0).nonzero()
    if not len(rows):
        raise ValueError("it is black")
    bits = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] & 15
    (black,) = (~bits.any((0, 2))).nonzero()
    if len(black) < 2 or black[0] != bits.shape[1] - 1 - black[-1]:
        raise ValueError("no two blocks of the same size beside the picture")
    blocks = [bits[:, : black[0]], bits[:, black[-1] + 1 :]]
    low, high = (block ^ (random_numbers(block.size).reshape(block.shape) & 15) for block in blocks)
    return zlib.decompressobj().decompress((high << 4 | low).tobytes(), MOST)


def random_numbers(count: int) -> np.ndarray:
    """A linear congruential generator: x ← a x + c mod 2³² from 0, so after k times c (1 + a + ... aᵏ⁻¹); x mod 255."""
    powers = np.full(count, 1664525, dtype=np.uint32)
    powers[:1] = 1
    states = np.uint32(1013904223) * powers.cumprod(dtype=np.uint32).cumsum(dtype=np.uint32)
    return (states % 255).astype(np.uint8)
