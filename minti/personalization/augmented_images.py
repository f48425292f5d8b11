"""Training images with captions, alpha masks or mirror images, of one shape or of several."""

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
from minti.personalization.fitting import bucket, buckets, padded, within
from minti.runs.checks import images as check_images
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
    """Training images with captions, mirror images (`flip`), alpha masks (`masked`), and fitted to the model (`fit`).
    Those of several shapes, (h, w) of their latents in `shapes`, lie in the corner of tensors for the largest.
    Raises ValueError: there is not one caption for each image; an image has no alpha channel."""

    @torch.no_grad()
    def __init__(
        self,
        model: StableDiffusion,
        images: Images,
        captions: Sequence[str] | None = None,
        flip: bool = False,
        masked: bool = False,
        fit: str = "crop",
    ):
        if captions is not None and len(captions) != len(images):
            raise ValueError(f"{len(captions)} captions for {len(images)} images; give each image one, in their order")
        check_images(images)
        factor, pixels, sizes = model.vae.config.factor, list(images), [(model.resolution,) * 2] * len(images)
        if given := not isinstance(images, Tensor):
            images = [ImageOps.exif_transpose(image) for image in images]
            if fit != "crop":
                sizes = [within(x, model) if fit == "pad" else bucket(x, buckets(model)) for x in images]
            pixels = [to_pixels(*each) for each in zip(images, sizes)]  # n of 3 H W
        masks = opacity(images, sizes) if masked else []  # n of 1 H W
        if given and fit == "pad":
            masks = [padded(x, model, "constant") for x in masks or [torch.ones(1, *size) for size in sizes]]
            pixels = [padded(x, model, "replicate") for x in pixels]
        if flip:
            pixels, masks = ([*each, *(x.flip(-1) for x in each)] for each in (pixels, masks))
        alone = [TrainingImages(model, each[None]) for each in pixels]
        joined = {name: side_by_side([getattr(one, name) for one in alone]) for name in ("pixels", "mean", "logvar")}
        vars(self).update(vars(alone[0]) | joined)
        self.masks = side_by_side([F.avg_pool2d(mask[None], factor) for mask in masks]).to(self.mean) if masks else None
        shapes = [one.mean.shape[-2:] for one in alone]
        self.shapes = shapes if len(set(shapes)) > 1 else None

    def batch(self, size: int, prompts: Sequence[str], generator: torch.Generator) -> Batch | MaskedBatch:
        """Random images, latents, prompts, timesteps and noise, with the images' masks."""
        return self.with_masks(super().batch(size, prompts, generator))

    def with_masks(self, batch: Batch) -> Batch | MaskedBatch:
        """The batch with its images' masks, if there are any, and in their bucket's shape."""
        batch = batch if self.masks is None else MaskedBatch(*batch, self.masks[batch.indices])
        if self.shapes:
            h, w = self.shape(batch.indices)
            names = {"latents", "noise", "masks"} & set(batch._fields)
            batch = batch._replace(**{name: getattr(batch, name)[..., :h, :w].contiguous() for name in names})
        return batch

    def shape(self, indices: Sequence[int]) -> tuple[int, int]:
        """The shape of some images' latents, (h, w). Raises ValueError: they have several."""
        shape, *others = {self.shapes[i] for i in indices}
        if others:
            several = f"gives images of {len(others) + 1} shapes, which cannot share a batch"
            raise ValueError(f"fit = 'bucket' {several}; set batch_size (--batch-size) to 1")
        return shape

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


def side_by_side(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors (1, c, h, w) of several shapes in the upper left corner of (n, c, the largest h, the largest w)."""
    h, w = (max(x.shape[axis] for x in tensors) for axis in (-2, -1))
    return torch.cat([F.pad(x, (0, w - x.shape[-1], 0, h - x.shape[-2])) for x in tensors])


def opacity(images: Sequence[Image.Image], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Alpha masks of images, fitted to their sizes (height, width), (1, height, width) each, 1 where opaque.
    Raises ValueError: one has no alpha channel, or is transparent everywhere."""
    masks = []
    for i, (image, size) in enumerate(zip(images, sizes)):
        if not isinstance(image, Image.Image) or "A" not in image.getbands():
            raise ValueError(f"image {i} has no alpha channel to mask it by; give each image one, or mask none")
        fitted = ImageOps.fit(image.getchannel("A"), size[::-1], Image.Resampling.BICUBIC)
        masks.append(torch.from_numpy(np.array(fitted, dtype=np.float32))[None] / 255)
        if not masks[-1].any():
            raise ValueError(f"image {i} is transparent everywhere: its mask leaves nothing to learn from")
    return masks
