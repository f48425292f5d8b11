"""The page of images that `train.py` makes: the training images, the subject, and prompts before and after."""

from support.command_line import generators
from support.given import tell_of_crops
from support.pages import page

import argparse
import warnings
from functools import partial
from pathlib import Path

from PIL import Image, ImageOps
from tqdm import tqdm

import minti
from minti.personalization.initialization import learned_vectors
from minti.personalization.vocabulary import is_learned


def tell_of_images(
    args: argparse.Namespace, model: minti.StableDiffusion, folder: Path, images: list[Image.Image]
) -> None:
    """Warns of images that the toybox cannot know, and of those that are cropped much."""
    if args.images and Path(args.model) == minti.TOYBOX:
        text = "the toybox knows only the toys of its own little world; images of yours need --model, see the README"
        warnings.warn(text, stacklevel=2)
    tell_of_crops(folder, images, args.fit, model)


def sample(args: argparse.Namespace, model: minti.StableDiffusion, prompts: list[str]) -> list[Image.Image]:
    """Images of the prompts; image i of every row starts from the same noise."""
    options = {"sampler": args.sampler, "num_inference_steps": args.sample_steps, "guidance_scale": args.guidance_scale}
    try:
        return minti.sample(model, prompts, **options, generator=generators(args.seed, len(prompts)))
    except ValueError as error:
        if args.learning_rate is None or "not finite" not in str(error):
            raise
        raise ValueError(f"{error}, or a lower --learning-rate (it is {args.learning_rate:g})") from None


def sample_page(
    args: argparse.Namespace, model: minti.StableDiffusion, subject: str, images: list[Image.Image]
) -> Image.Image:
    """The training images, the subject alone, and every prompt with the initializer (if any) above the subject."""
    size = model.resolution
    shown = ImageOps.fit if args.fit == "crop" else partial(ImageOps.pad, color="white")
    rows = [("the training images", [shown(image, (size, size)) for image in images[: args.columns]])]
    jobs, initializer = [subject], args.initializer_token
    if is_learned(initializer):  # what the file says, as a word beside the one that has learned on
        given = {"placeholder_token": args.placeholder_token, "num_vectors": args.num_vectors}
        config = minti.TextualInversionConfig(initializer_token=initializer, **given)
        vectors = learned_vectors(minti.TrainingWrapper(model, config))
        model.add_word(initializer := f"{args.placeholder_token}-before", vectors)
    for prompt in args.prompts or model.defaults.prompts:
        jobs += [prompt.replace("{}", word) for word in (initializer, subject) if word]
    for text in tqdm(jobs, desc="sampling", disable=True if args.quiet else None):
        rows.append((text, sample(args, model, [text] * args.columns)))
    return page(rows)
