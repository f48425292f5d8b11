"""Textual inversion: learns a new word from a few images and samples it in any scene. Also LoRA and DreamBooth.

    python examples/train.py                                           # a bundled toy, on the bundled toybox model
    python examples/train.py --images my-cat --initializer cat --model path/to/stable-diffusion-v1-4
    python examples/train.py --learn word+lora                         # or lora, or dreambooth: the whole network
    torchrun --nproc-per-node 2 examples/train.py                      # on two GPUs, or in two processes

Writes to outputs/NAME/: learned_embeds.safetensors (the word), lora.safetensors or model/ (the LoRA or the fine-tuned
model), page.png (sampled images), curves.png and losses.csv; and checkpoints/, from which --resume continues an
interrupted run. Without --resume, an earlier run's are put aside: checkpoints-before, losses-before-2.csv, ...
"""

from support import adapters
from support.command_line import arguments, load, make_output, run, whole
from support.curves import plot
from support.learning import Learning, say
from support.option_types import filled, whole_or_auto
from support.training_options import training_options
from support.training_page import sample, sample_page, tell_of_images
from support.tuning import LEARN, Tuning, check_options, class_images, optimizer_of, tune, tuning_options

import argparse
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

import minti
from minti.denoising import SAMPLERS
from minti.evaluation.grids import grid
from minti.evaluation.neighbours import learned_rows
from minti.formats.image_files import open_folder, save_png
from minti.personalization.augmented_images import open_captions
from minti.personalization.config import PersonalizationConfig
from minti.personalization.dreambooth import WORD_ONLY, DreamBooth, DreamBoothConfig
from minti.personalization.initializer_search import choose_initializer
from minti.personalization.num_vectors_search import NumVectorsSearch, Restarts
from minti.runs import distributed
from minti.runs.word_checks import check_new_word
from minti.templates import TEMPLATES

CONCEPTS = Path(__file__).parent / "concepts"


def parse() -> argparse.Namespace:
    """The command line; training options are stored under the names of the config's fields."""
    names = sorted(folder.name for folder in CONCEPTS.iterdir() if folder.is_dir())
    parser = arguments(__doc__.split("\n\n")[0], output=None)
    what = parser.add_argument_group("what to learn")
    what.add_argument("--concept", default="red-diamond-pink-belt", choices=names, help="a bundled concept")
    what.add_argument("--images", type=Path, help="a folder with your own images, three to ten, instead")
    learn_help = "a new word, a LoRA, a word first and then both together, or the whole network (DreamBooth)"
    what.add_argument("--learn", choices=LEARN, default="word", help=learn_help)
    word_help = "the new word; for lora and dreambooth a rare one that exists; default: <concept>, or sks"
    what.add_argument("--placeholder", type=filled, dest="placeholder_token", metavar="WORD", help=word_help)
    known = {"dest": "initializer_token", "metavar": "WORD or FILE", "type": filled}
    known_help = (
        "initializer token: a known word or phrase ('yellow moon') that says roughly what the images show; 'auto' "
        "searches the vocabulary for it (some 700 forward passes), 'random' starts from random vectors; a file of a "
        "learned word goes on from that; default: the model's own, 'toy' for the toybox, else 'object'"
    )
    what.add_argument("--initializer", help=known_help, **known)
    vectors_help = "embedding vectors of the new word; 'auto' adds one after another while the validation loss falls"
    what.add_argument("--vectors", type=whole_or_auto(1), default=1, dest="num_vectors", metavar="N", help=vectors_help)
    starts_help = "learn so many times, each from a seed of its own, and keep the run of the lowest validation loss"
    what.add_argument("--starts", type=whole(1), default=1, metavar="N", help=starts_help)
    what.add_argument("--templates", choices=TEMPLATES, help="training prompts; default: the model's own")
    what.add_argument("--flip", action="store_true", dest="horizontal_flip", help="also train on mirror images")
    captions_help = "NAME.txt beside each image is its caption; {} in it becomes the word"
    what.add_argument("--captions", action="store_true", help=captions_help)
    what.add_argument("--masked", action="store_true", help="train only where the images are opaque")
    training_options(parser)
    tuning_options(parser)
    adapters.add_fast(parser)
    safe = parser.add_argument_group("interruption")
    safe.add_argument("--resume", action="store_true", help="continue the output folder's interrupted run")
    every_help = "save a checkpoint every so many steps; default: with every validation loss"
    safe.add_argument("--checkpoint-every", type=whole(1), help=every_help)
    show = parser.add_argument_group("what to sample")
    show.add_argument("--prompts", nargs="+", metavar="PROMPT", help="prompts of the page, with {} for the word")
    show.add_argument("--columns", type=whole(1), default=5, help="images per row of the page")
    show.add_argument("--sampler", choices=SAMPLERS, default="dpm-solver++")
    show.add_argument("--sample-steps", type=whole(1), default=15, help="denoising steps per image")
    show.add_argument("--validate-every", type=whole(0), default=0, help="sample every so many steps; 0: never")
    args = parser.parse_args()
    check_options(parser, args)
    args.grow = args.num_vectors == "auto"
    args.num_vectors = 1 if args.grow else args.num_vectors
    args.with_word = args.learn.startswith("word")
    args.placeholder_token = args.placeholder_token or ("<concept>" if args.with_word else "sks")
    if not args.with_word and args.initializer_token in ("random", "auto"):
        parser.error("--initializer names the class here, such as toy; auto and random are for new words")
    if args.learn != "word" and args.initializer_token == "random":
        parser.error("--initializer random is for a word alone; a LoRA needs to know the class, such as toy")
    if args.class_images:
        args.class_pictures = None
    if args.learn == "dreambooth" and args.dtype == "auto":
        args.dtype = "float32"  # small steps round to none in half precision
    args.initializer_token = {None: "", "random": None}.get(args.initializer_token, args.initializer_token)
    if wrong := [prompt for prompt in args.prompts or () if "{}" not in prompt]:
        parser.error(f"the prompt {wrong[0]!r} has no {{}} where the word goes")
    return args


def configured(args: argparse.Namespace, kind: type, **more: object) -> Any:
    """The options that are settings of that kind; those that were not given keep its defaults."""
    names = {field.name for field in fields(kind)} - set(WORD_ONLY if kind is DreamBoothConfig else ())
    given = {name: value for name, value in vars(args).items() if name in names and value is not None}
    # None is a setting of its own: random vectors.
    return kind(**given | {"initializer_token": args.initializer_token} | more)


def word_first(args: argparse.Namespace, captions: list[str] | None) -> PersonalizationConfig:
    """The settings of a word that is learned before a LoRA, with early stopping; --steps and --learning-rate are the
    LoRA's."""
    first = {"captions": captions, "steps": None, "learning_rate": None, "lr_schedule": "constant", "warmup_steps": 0}
    return configured(args, PersonalizationConfig, **first)


def find_initializer(
    model: minti.StableDiffusion, config: minti.TextualInversionConfig, images: list[Image.Image]
) -> str:
    """The known word that fits the images best; prints the best five."""
    found = choose_initializer(model, config, images)
    listed = ", ".join(f"{word} ({loss:.4f})" for word, loss in found[:5])
    say(f"initializer {found[0][0]}; the best words by their validation loss: {listed}")
    return found[0][0]


def learn_word(
    args: argparse.Namespace,
    model: minti.StableDiffusion,
    config: minti.TextualInversionConfig,
    images: list[Image.Image],
    folder: Path,
    validate: Callable[[Path], None],
) -> tuple[Learning, dict[str, list[minti.TrainingState]]]:
    """Learns the word, with as many vectors as the arguments say or as the search chooses, and saves it.

    Returns:
        The run whose vectors were kept, and the steps of the others by what they were.
    """
    if not args.grow and args.starts == 1:
        learning = Learning(args, minti.TrainingWrapper(model, config), folder, validate)
        learning.run(images)
        learning.save()
        return learning, {}
    make, runs = NumVectorsSearch if args.grow else partial(Restarts, most=args.starts), []
    for wrapper in (search := make(model, config, images)):
        stage = f"-{search.label(wrapper.config).replace(' ', '-')}" if runs else ""
        runs.append(Learning(args, wrapper, folder, validate, stage))
        runs[-1].run(images)
        runs[0].save()
    for decision in search.decisions:
        say(str(decision))
    (learning,) = (run for run in runs if run.wrapper is search.best)
    if not any(run.improved for run in runs):
        raise minti.TrainingError(learning.nothing_learned())
    if distributed.rank() == 0:
        learning.write()
    others = {search.label(run.wrapper.config): run.states for run in runs if run is not learning}
    return learning, {label: states for label, states in others.items() if states}


def learn_more(
    args: argparse.Namespace,
    model: minti.StableDiffusion,
    images: list[Image.Image],
    folder: Path,
    validate: Callable[[Path], None],
    captions: list[str] | None,
) -> Tuning:
    """A LoRA, alone or together with a word that is learned first, or the network."""
    learns = "network" if args.learn == "dreambooth" else "lora"
    config, word = configured(args, DreamBoothConfig, learns=learns, captions=captions), None
    optimizer_of(args.optimizer)  # what is wrong with the second stage is found before the first
    if args.with_word:
        DreamBooth(model, config)
        wrapper = minti.TrainingWrapper(model, word_first(args, captions))
        check_new_word(wrapper)
        wrapper.initial_vectors()
    prior = class_images(args, model, config, folder)
    if args.with_word:
        learning = Learning(args, wrapper, folder, validate, "-word")
        learning.run(images)
        say(learning.summary())
        word = learning.wrapper
    return tune(Tuning(args, DreamBooth(model, config, word), folder, validate), images, prior)


def main() -> None:
    """Images to a word to a page."""
    args = parse()
    source = args.images or CONCEPTS / args.concept
    name = source.resolve().name if args.learn == "word" else f"{source.resolve().name}-{args.learn}"
    folder = args.output or Path("outputs") / name
    if folder.resolve() == source.resolve():
        raise ValueError(f"the results would lie among the images in {folder}; name another folder with --output")
    images = open_folder(source, alpha=args.masked)
    captions = open_captions(source) if args.captions else None
    only_word = args.learn == "word"
    if only_word:
        config = configured(args, PersonalizationConfig, captions=captions)
    else:
        config = configured(args, DreamBoothConfig, captions=captions)
        if args.with_word:
            word_first(args, captions)  # if its settings are wrong, then now
    folder = make_output(folder)
    model = load(args)
    tell_of_images(args, model, source, images)
    with adapters.fast(args, model):
        model.scheduler.timesteps(args.sample_steps)  # if so many are not possible, then now
        if args.initializer_token == "":
            args.initializer_token = model.defaults.initializer_token
        subject = config.placeholder_token if args.with_word else f"{config.placeholder_token} {args.initializer_token}"

        def validate(path: Path) -> None:
            save_png(grid(sample(args, model, [subject] * args.columns), args.columns), path)

        if args.initializer_token == "auto":
            args.initializer_token = find_initializer(model, config, images)
        config = replace(config, initializer_token=args.initializer_token)
        if only_word:
            learning, others = learn_word(args, model, config, images, folder, validate)
        else:
            learning, others = learn_more(args, model, images, folder, validate, captions), {}
        if distributed.rank() > 0:
            return
        if learning.states:
            plot(folder / "curves.png", learning.states, learning.wrapper.vocabulary_norm, others)
        if only_word:
            print(learning.summary())
            for row in learned_rows(model, args.placeholder_token):
                nearest = ", ".join(f"{word} ({similarity:.2f})" for word, similarity in row.nearest)
                print(f"nearest to {row.token}, by cosine similarity: {nearest}")
        with learning.attached():
            save_png(sample_page(args, model, subject, images), folder / "page.png")
        print(f"wrote {folder}/page.png, curves.png, losses.csv, {', '.join(learning.results)}")


if __name__ == "__main__":
    run(main)
