"""Several new words learned together, from images that show the things alone and side by side, and their captions.

    python examples/train_together.py                    # two bundled toys, on the bundled toybox model
    python examples/train_together.py --images my-pets --words "<tom>=cat" "<rex>=dog" --model path/to/sd-v1-4

Every image has a caption, NAME.txt beside NAME.png, which says the words that it shows: "a <tom> next to a <rex>".
Words that are learned one by one have never met, and of two in a prompt one is often wrong (MCPL, arXiv 2310.12274).
Writes to outputs/together/: learned_embeds.safetensors with all the words, page.png, curves.png, losses.csv; and
checkpoints/, from which --resume continues an interrupted run.
"""

from support.command_line import arguments, generators, load, make_output, run, whole
from support.curves import plot
from support.learning import Learning, say
from support.option_types import filled
from support.pages import page
from support.training_options import training_options
from support.training_page import tell_of_images

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

from PIL import Image, ImageOps
from tqdm import tqdm

import minti
from minti.denoising import SAMPLERS
from minti.embeddings import write_embeddings
from minti.formats.image_files import open_folder, save_png
from minti.personalization.augmented_images import open_captions
from minti.personalization.config import PersonalizationConfig
from minti.personalization.together import learn_together
from minti.runs import distributed
from minti.runs.checkpoints import resumed

BUNDLED = Path(__file__).parent / "together"


class LearningTogether(Learning):
    """A run that several words share; its settings and checkpoints are those of the first."""

    def __init__(self, args: argparse.Namespace, words: Sequence[minti.TrainingWrapper], captions: list[str]):
        super().__init__(args, words[0], args.output)
        self.words, self.captions = words, captions

    def steps(self, images: list[Image.Image]) -> Iterator[minti.TrainingState]:
        """The steps of the run."""
        trainer = learn_together(self.words, images, self.captions)
        if self.checkpoint is not None:
            resumed(trainer, self.checkpoint)
        return iter(minti.monitored(trainer))

    def write(self) -> None:
        """Writes the vectors of all words to one file."""
        self.begin_results()
        write_embeddings(self.folder / self.results[0], {word.subject: word.embedding.values for word in self.words})

    def summary(self) -> str:
        """What was learned, in a sentence."""
        names = " and ".join(word.subject for word in self.words)
        return super().summary().replace(self.words[0].subject, names, 1)


def parse() -> argparse.Namespace:
    """The command line; training options are stored under the names of the config's fields."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/together")
    what = parser.add_argument_group("what to learn")
    what.add_argument("--images", type=Path, default=BUNDLED, help="a folder of images with captions, NAME.txt")
    words_help = (
        "the new words, as in the captions; WORD=INITIALIZER starts from a known word; default: the model's own"
    )
    what.add_argument(
        "--words", type=filled, nargs="+", default=["<first>", "<second>"], metavar="WORD", help=words_help
    )
    training_options(parser)
    parser.set_defaults(steps=300, directional=True, lr_schedule="cosine")
    safe = parser.add_argument_group("interruption")
    safe.add_argument("--resume", action="store_true", help="continue the output folder's interrupted run")
    every_help = "save a checkpoint every so many steps; default: with every validation loss"
    safe.add_argument("--checkpoint-every", type=whole(1), help=every_help)
    show = parser.add_argument_group("what to sample")
    prompts_help = "prompts of the page, with the words in them; default: the captions"
    show.add_argument("--prompts", nargs="+", metavar="PROMPT", help=prompts_help)
    show.add_argument("--columns", type=whole(1), default=5, help="images per row of the page")
    show.add_argument("--sampler", choices=SAMPLERS, default="dpm-solver++")
    show.add_argument("--sample-steps", type=whole(1), default=15, help="denoising steps per image")
    args = parser.parse_args()
    args.validate_every = 0
    return args


def wrappers(args: argparse.Namespace, model: minti.StableDiffusion) -> list[minti.TrainingWrapper]:
    """A wrapper for each of --words, all with the same settings."""
    names = {field.name for field in fields(PersonalizationConfig)}
    given = {name: value for name, value in vars(args).items() if name in names and value is not None}
    words = [word.partition("=")[::2] for word in args.words]
    return [
        minti.TrainingWrapper(
            model, PersonalizationConfig(**given | {"placeholder_token": word, "initializer_token": known})
        )
        for word, known in words
    ]


def sample_page(
    args: argparse.Namespace, model: minti.StableDiffusion, captions: Sequence[str], images: Sequence[Image.Image]
) -> Image.Image:
    """For each caption the images that have it, and samples of it; or samples of --prompts."""
    rows, size = [], (model.resolution, model.resolution)
    options = {"sampler": args.sampler, "num_inference_steps": args.sample_steps, "guidance_scale": args.guidance_scale}
    for prompt in tqdm(args.prompts or dict.fromkeys(captions), desc="sampling", disable=True if args.quiet else None):
        shown = [ImageOps.fit(image, size) for image, caption in zip(images, captions) if caption == prompt]
        if shown:
            rows.append((f"training images: {prompt}", shown[: args.columns]))
        sampled = minti.sample(model, [prompt] * args.columns, generator=generators(args.seed, args.columns), **options)
        rows.append((prompt, sampled))
    return page(rows)


def main() -> None:
    """Images and captions to words to a page."""
    args = parse()
    images, captions = open_folder(args.images), open_captions(args.images)
    if args.output.resolve() == args.images.resolve():
        raise ValueError(f"the results would lie among the images in {args.output}; name another folder with --output")
    make_output(args.output)
    model = load(args)
    if args.images != BUNDLED:
        tell_of_images(args, model, args.images, images)
    model.scheduler.timesteps(args.sample_steps)  # if so many are not possible, then now
    learning = LearningTogether(args, wrappers(args, model), captions)
    learning.run(images)
    learning.save()
    if distributed.rank() > 0:
        return
    plot(args.output / "curves.png", learning.states, learning.wrapper.vocabulary_norm, {})
    say(learning.summary())
    save_png(sample_page(args, model, captions, images), args.output / "page.png")
    say(f"wrote {args.output}/page.png, curves.png, losses.csv, {learning.results[0]}")


if __name__ == "__main__":
    run(main)
