"""The CLIP image encoder of an IP-Adapter, as transformers has it."""

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from minti.runs.messages import one_line, shortened


def load_image_encoder(source: str, device: torch.device) -> Callable[[Image.Image], Tensor]:
    """From a folder or hub id ("h94/IP-Adapter/models/image_encoder" for SD v1.4's): a function of an image, which is
    resized, cropped and normalized as in diffusers, to its embedding, (1, clip_dim) float32.
    Raises OSError: it cannot be reached."""
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    parts = [source] if Path(source).exists() else source.split("/")
    inside = {"subfolder": "/".join(parts[2:])} if len(parts) > 2 else {}
    try:
        encoder = CLIPVisionModelWithProjection.from_pretrained("/".join(parts[:2]), use_safetensors=True, **inside)
    except (OSError, ValueError) as error:
        reason = shortened(one_line(error))
        raise OSError(f"cannot reach the image encoder {shortened(source)} ({reason}); name its folder") from None
    encoder.to(device).eval()
    size = encoder.config.image_size
    processor = CLIPImageProcessor(size=size, crop_size=size)

    @torch.no_grad()
    def encode(image: Image.Image) -> Tensor:
        pixels = processor(image, return_tensors="pt").pixel_values  # 1 3 size size
        return encoder(pixels.to(device)).image_embeds

    return encode
