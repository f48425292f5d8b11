"""Training images with captions, alpha masks or mirror images."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from minti.formats.image_files import image_files
from minti.images import to_pixels
from minti.model import StableDiffusion
from minti.runs.messages import one_line
from minti.textual_inversion import Batch, Images, TrainingImages


class Captions(list[str]):
    """One caption per image, with the subject in place of `{}`; image n + i is image i mirrored."""

    def __init__(self, captions: Sequence[str], subject: str):
        super().__init__(caption.replace("{}", subject) for caption in captions)


class MaskedBatch(NamedTuple):
    """A `Batch` with masks (b, 1, h, w) in [0, 1], where errors count."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    prompts: list[str]
    indices: list[int]
    masks: Tensor


class AugmentedImages(TrainingImages):
    """Training images with captions, mirror images (`flip`) or alpha masks (`masked`). Raises ValueError: there is not
    one caption for each image; an image has no alpha channel."""

    @torch.no_grad()
    def __init__(
        self,
        model: StableDiffusion,
        images: Images,
        captions: Sequence[str] | None = None,
        flip: bool = False,
        masked: bool = False,
    ):
        if captions is not None and len(captions) != len(images):
            raise ValueError(f"{len(captions)} captions for {len(images)} images; give each image one, in their order")
        masks = opacity(images, model.resolution, flip) if masked else None  # n 1 H W
        if not isinstance(images, Tensor) and len(images):
            images = torch.stack([to_pixels(image, model.resolution) for image in images])
        super().__init__(model, torch.cat([images, images.flip(-1)]) if flip and len(images) else images)
        self.masks = None if masks is None else F.avg_pool2d(masks, model.vae.config.factor).to(self.mean)

    def batch(self, size: int, prompts: Sequence[str], generator: torch.Generator) -> Batch | MaskedBatch:
        """Random images, latents, prompts, timesteps and noise, with the images' masks."""
        return self.with_masks(super().batch(size, prompts, generator))

    def with_masks(self, batch: Batch) -> Batch | MaskedBatch:
        """The batch with its images' masks, if there are any."""
        return batch if self.masks is None else MaskedBatch(*batch, self.masks[batch.indices])

    def prompts_for(self, indices: Sequence[int], prompts: Sequence[str], chosen: Sequence[int]) -> list[str]:
        """The prompt of each image: its caption, or the chosen template."""
        return [prompts[i % len(prompts)] for i in (indices if isinstance(prompts, Captions) else chosen)]


def open_captions(folder: str | os.PathLike[str]) -> list[str]:
    """The captions of a folder: NAME.txt beside each image NAME, in the order of the images.
    Raises FileNotFoundError, ValueError: an image has no caption, or a caption no image; names it."""
    files = image_files(folder)
    texts = {path.stem for path in Path(folder).glob("*.txt") if not path.name.startswith(".")}
    alone = texts - {path.stem for path in files}
    if alone:
        raise ValueError(f"{Path(folder) / min(alone)}.txt is a caption without its image; remove or rename it")
    captions = []
    for path in files:
        path = path.with_suffix(".txt")
        try:
            captions.append(" ".join(path.read_text(encoding="utf-8-sig").split()))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read ({one_line(error)}); every image needs a caption") from None
    return captions


def opacity(images: Sequence[Image.Image], size: int, flip: bool = False) -> Tensor:
    """Alpha masks of images, and with `flip` behind them of their mirror images: (n, 1, size, size), 1 where opaque.
    Raises ValueError: one has no alpha channel, or is transparent everywhere."""
    masks = []
    for i, image in enumerate(images):
        if not isinstance(image, Image.Image) or "A" not in image.getbands():
            raise ValueError(f"image {i} has no alpha channel to mask it by; give each image one, or mask none")
        fitted = ImageOps.fit(ImageOps.exif_transpose(image).getchannel("A"), (size, size), Image.Resampling.BICUBIC)
        masks.append(torch.from_numpy(np.array(fitted, dtype=np.float32))[None] / 255)
        if not masks[-1].any():
            raise ValueError(f"image {i} is transparent everywhere: its mask leaves nothing to learn from")
    opaque = torch.stack(masks)
    return torch.cat([opaque, opaque.flip(-1)]) if flip else opaque
