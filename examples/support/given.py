"""Training images, image to image, inpainting, DDIM inversion and masks, by the files that a command line names."""

from support.prompt_options import Read

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

import minti
from minti.editing.image_to_image import ImageToImage
from minti.editing.images import fit_mask, image_latents, latent_mask
from minti.editing.inversion import inverted_noise
from minti.formats.image_files import image_files, open_image
from minti.personalization.fitting import bucket, buckets
from minti.runs.messages import shortened

HALVES = {"left": (0, 0, 0.5, 1), "right": (0.5, 0, 1, 1), "top": (0, 0, 1, 0.5), "bottom": (0, 0.5, 1, 1)}


def where_mask(where: str, height: int, width: int) -> Image.Image:
    """A half of the image by its name, or the mask in a file, as black and white pixels, height x width."""
    if where not in HALVES:
        return open_mask(Path(where), height, width)
    mask = Image.new("L", (width, height))
    mask.paste(255, tuple(round(part * side) for part, side in zip(HALVES[where], 2 * (width, height))))
    return mask


def cut_off(image: Image.Image, height: int, width: int) -> float:
    """The share of an image that is cut off where its middle is taken in the shape height x width."""
    ratio = image.width / image.height * height / width
    return 1 - min(ratio, 1 / ratio)


def tell_of_crops(folder: Path, images: Sequence[Image.Image], fit: str, model: minti.StableDiffusion) -> None:
    """Warns of training images of which more than a fifth is cut off, by their files."""
    if fit == "pad":
        return
    sizes = [bucket(image, buckets(model)) if fit == "bucket" else (1, 1) for image in images]
    shares = [cut_off(image, *size) for image, size in zip(images, sizes)]
    with warnings.catch_warnings():  # of other files in the folder, which is said already
        warnings.simplefilter("ignore")
        names = [path.name for path in image_files(folder)]
    if much := [f"{name} ({share:.0%})" for name, share in zip(names, shares) if share > 0.2]:
        mend = "crop them yourself; train.py --fit pad keeps all of them" + (
            ", --fit bucket most" if fit == "crop" else ""
        )
        cut = f"more than a fifth is cut off, beside the middle, of {shortened(', '.join(much), 300)}"
        warnings.warn(f"{folder}: {cut}; {mend}", stacklevel=2)


def open_fitted(path: Path, height: int, width: int) -> Image.Image:
    """The image in a file, scaled, and cropped to height x width pixels; warns where its sides are cut off."""
    whole = open_image(path)
    if (cut := cut_off(whole, height, width)) > 0.02:
        taken = f"the middle is taken ({1 - cut:.0%}), in the shape of the sample"
        cropped = f"of its {whole.width} x {whole.height} pixels {taken}"
        warnings.warn(f"{path}: {cropped}, {width} x {height}; crop it yourself for another part", stacklevel=2)
    return ImageOps.fit(whole, (width, height), Image.Resampling.BICUBIC)


def open_mask(path: Path, height: int, width: int, size: tuple[int, int] | None = None) -> Image.Image:
    """The mask in a file, as black and white pixels, height x width, scaled first to the size of the image that it is
    of; warns where it is all of one colour."""
    mask = open_image(path, alpha=True)
    mask = fit_mask(mask if size is None else mask.resize(size), height, width)
    if (least := mask.getextrema()[0]) == mask.getextrema()[1]:
        colour, means = ("white", "everything is sampled") if least else ("black", "nothing is sampled")
        warnings.warn(f"{path}: the mask is all {colour}, so {means}", stacklevel=2)
    return mask


class Edit:
    """An image to start from, noised or inverted, and the mask of what is sampled anew; nothing where none is named.

    Attributes:
        options: of `minti.sample`.
    """

    def __init__(self, args: argparse.Namespace, model: minti.StableDiffusion, read: Read = lambda prompts: prompts):
        self.options: dict[str, Any] = {}
        self.image = self.mask = latents = None
        path = args.init_image or args.invert
        if not path:
            return
        height, width = args.height or model.resolution, args.width or model.resolution
        self.image = open_fitted(path, height, width)
        init_latents = image_latents(model, self.image, height, width)
        strength = (1.0 if args.mask or args.invert else 0.8) if args.strength is None else args.strength
        if args.invert:  # from there the source prompt leads back to the image; another one edits it
            self.options["latents"] = inverted_noise(model, init_latents, read([args.source]), args.steps, strength)
        if args.mask:
            self.mask = open_mask(args.mask, height, width, open_image(path).size)
            latents = latent_mask(self.mask, model.vae.config.factor)
        self.options["begin"] = ImageToImage(init_latents, strength, latents)

    def paste(self, sampled: Image.Image) -> Image.Image:
        """A sampled image with the kept part of the original put back, which the VAE would have blurred."""
        return sampled if self.mask is None else Image.composite(sampled, self.image, self.mask)
