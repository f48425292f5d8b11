"""The toybox's own CLIP: the model's text encoder, and the image encoder that was trained with it."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import minti
from minti.evaluation.clip_scores import Clip, cropped
from minti.images import to_pixels
from networks import ToyCLIP, load_weights
from world import RESOLUTION

FILE = Path("evaluation") / "clip.safetensors"


def load_toy_clip(model: minti.StableDiffusion, model_folder: str | Path) -> Clip:
    """The bundled CLIP, for CLIP scores; prompts may contain the world's words and the model's learned ones.

    Raises FileNotFoundError: the model has none; only the toybox does. ValueError: the file has other weights.
    """
    path = Path(model_folder) / FILE
    clip = ToyCLIP(model.text_encoder.config)
    unexpected = clip.load_state_dict(load_weights(path), strict=False).unexpected_keys
    if unexpected:
        raise ValueError(f"{path} is not the CLIP of this toybox: it has {unexpected[0]}")
    clip.to(model.device).eval().requires_grad_(False)

    def pixels(pictures: Tensor) -> Tensor:
        return clip.encode_image(cropped(pictures.float(), RESOLUTION))

    @torch.no_grad()
    def images(pictures: Sequence[Image.Image]) -> Tensor:
        return pixels(torch.stack([to_pixels(picture, RESOLUTION) for picture in pictures]).to(model.device)).cpu()

    @torch.no_grad()
    def texts(prompts: Sequence[str]) -> Tensor:
        ids = model.tokenize(prompts).to(model.device)
        return F.normalize(clip.text_projection(model.text_encoder(ids).pooler_output.float()), dim=-1).cpu()

    return Clip(images, texts, "the toybox's own CLIP", pixels)
