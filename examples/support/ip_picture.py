"""What an IP-Adapter's own eye sees in a picture: the toybox's little CLIP, or the picture tower of a large one."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import minti
from minti.runs.messages import one_line, shortened

TOYBOX = Path(__file__).resolve().parents[1] / "toybox"


def seen(model: minti.StableDiffusion, folder: str, encoder: str | None, picture: Image.Image) -> Tensor:
    """A picture as an IP-Adapter takes it, (1, clip_dim).

    Args:
        folder: the model's; one with a CLIP of its own, such as the toybox, needs no encoder.
        encoder: a CLIP's picture tower, a folder or hub id: "h94/IP-Adapter/models/image_encoder" for SD v1.4's.

    Raises ValueError, OSError: there is no encoder, or it cannot be reached.
    """
    if encoder is not None:
        return seen_by_transformers(encoder, picture, model.device)
    if not (Path(folder) / "evaluation" / "clip.safetensors").is_file():
        raise ValueError("--ip-encoder is missing, the CLIP that looks at the picture: a folder, or "
                         "h94/IP-Adapter/models/image_encoder")  # fmt: skip
    sys.path.append(str(TOYBOX))
    from toy_clip import load_toy_clip

    return load_toy_clip(model, folder).images([picture])


@torch.no_grad()
def seen_by_transformers(source: str, picture: Image.Image, device: torch.device) -> Tensor:
    """Shrunk, cropped and scaled as diffusers' pipeline does it: (1, clip_dim) float32. Raises OSError."""
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    parts = [source] if Path(source).exists() else source.split("/")
    inside = {"subfolder": "/".join(parts[2:])} if len(parts) > 2 else {}
    try:
        tower = CLIPVisionModelWithProjection.from_pretrained("/".join(parts[:2]), use_safetensors=True, **inside)
    except (OSError, ValueError) as error:
        reason = shortened(one_line(error))
        raise OSError(f"cannot reach the picture tower {shortened(source)} ({reason}); name its folder") from None
    size = tower.config.image_size
    pixels = CLIPImageProcessor(size=size, crop_size=size)(picture, return_tensors="pt").pixel_values  # 1 3 size size
    return tower.to(device).eval()(pixels.to(device)).image_embeds
