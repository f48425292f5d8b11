"""Evaluates two learned embeddings as exercise E4 asks (tasks 3b and 3c): 32 images, CLIP scores, an HTML report.

    python examples/evaluate.py                                # two bundled toys, learned on the spot
    python examples/evaluate.py --embedding cat.safetensors='<cat>' --images my-cat \
        --embedding mug.safetensors='<mug>' --images my-mug --model path/to/stable-diffusion-v1-4

Writes to outputs/report/: report.html, page.png, pictures/ (the 32 images), grids/ (each prompt's in one file), and PNG
and CSV files of every section.
"""

from support import adapters, html, rows, studies
from support.command_line import arguments, load, make_output, run, whole
from support.drawing import Artist
from support.option_types import filled
from support.subjects import learn, open_subjects

import argparse
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

import minti
from minti.denoising import SAMPLERS
from minti.evaluation.clip_scores import CLIP_SOURCE, Clip, load_clip

EXAMPLES = Path(__file__).resolve().parent
CONCEPTS = EXAMPLES / "concepts"
TEMPLATES = (
    "a comic book illustration of a {}",
    "a black and white photo of a {}",
    "an oil painting of a {} in a forest",
    "a photo of a {} next to a {}",
    "a comic book illustration of a {} and a {} on the beach",
)
SECTIONS = ("words", "learning", "guidance", "attention", "together")
QUESTIONS = {  # of task 3c, by the number of words in a prompt
    1: "How well does each learned concept interact with other visual concepts and attributes?",
    2: "How well do the two learned concepts interact with each other?",
}
NEEDED = {"guidance": 1, "together": 2}  # words in a prompt; the other sections take any prompt


def parse() -> argparse.Namespace:
    """The command line."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/report")
    names = sorted(folder.name for folder in CONCEPTS.iterdir() if folder.is_dir())
    what = parser.add_argument_group("which words")
    default = ["red-diamond-pink-belt", "white-square-red-half"]
    what.add_argument("--concept", nargs="+", default=default, choices=names, metavar="NAME", help="bundled, to learn")
    embedding_help = "a learned word, instead of learning; twice, each with its --images"
    what.add_argument("--embedding", action="append", default=[], metavar="FILE=<name>", help=embedding_help)
    known_help = "a phrase that already means the thing, such as 'sks toy' after DreamBooth; with its --images"
    what.add_argument("--known", type=filled, action="append", default=[], metavar="PHRASE", help=known_help)
    images_help = "training images, to learn from or of --embedding; twice"
    what.add_argument("--images", action="append", default=[], metavar="FOLDER", help=images_help)
    known = "initializer token: a known word or phrase that roughly says what the images show; one for both, or two"
    what.add_argument("--initializer", type=filled, nargs="+", default=["toy"], metavar="WORD", help=known)
    what.add_argument("--vectors", type=whole(1), default=1, help="embedding vectors of each word that is learned here")
    what.add_argument(
        "--learning-steps",
        type=whole(1),
        help="training steps; default: early stopping by the validation loss",
    )
    how = parser.add_argument_group("what to sample")
    how.add_argument(
        "--templates", nargs="+", metavar="PROMPT", help="with one {} or two; default: the model's own five"
    )
    how.add_argument("--samples", type=whole(1), default=4, help="images per prompt")
    how.add_argument("--steps", type=whole(1), default=50, help="denoising steps")
    how.add_argument("--sampler", choices=SAMPLERS, default="ddpm")
    how.add_argument("--batch-size", type=whole(1), default=16, help="images sampled at a time")
    clip_help = f"CLIP for image and text alignment; default: the toybox's own, or {CLIP_SOURCE}"
    how.add_argument("--clip", type=filled, help=clip_help)
    sections_help = f"of the report, after the 32 images: {', '.join(SECTIONS)}; default: all"
    how.add_argument(
        "--sections", nargs="*", choices=SECTIONS, default=list(SECTIONS), metavar="NAME", help=sections_help
    )
    adapters.add_arguments(parser)
    args = parser.parse_args()
    folders, given = args.images or args.concept, len(args.embedding) + len(args.known)
    args.learns = not given
    if given and given != len(args.images):
        parser.error(
            f"{given} words and {len(args.images)} folders of training images: give each --embedding, and then each "
            "--known, its --images, in the same order"
        )
    if len(folders) > 2 or len(args.initializer) not in (1, len(folders)):
        parser.error("one or two words can be evaluated at a time, with one --initializer for all or one for each")
    return args


def open_toybox(model: minti.StableDiffusion, source: str) -> Any:
    """The toybox's own measures, where the model is the toybox; None for another."""
    if not (Path(source) / "evaluation").is_dir():
        # What DreamBooth has made of the toybox still draws the toybox's world, by its VAE.
        own, other = (vae.post_quant_conv.weight for vae in (minti.StableDiffusion.from_pretrained().vae, model.vae))
        if own.shape != other.shape or not torch.equal(own, other.detach().cpu().float()):
            return None
        source = str(minti.TOYBOX)
    sys.path.append(str(EXAMPLES / "toybox"))
    from toy_measures import ToyMeasures

    return ToyMeasures(model, source)


def find_clip(args: argparse.Namespace, toybox: Any) -> Clip | None:
    """The CLIP to measure with; without one, a warning and the images alone."""
    if toybox is not None and not args.clip:
        return toybox.clip
    try:
        return load_clip(args.clip or CLIP_SOURCE, args.device)
    except OSError as error:
        warnings.warn(f"{error} (--clip); image and text alignment are left out", stacklevel=2)
        return None


def introduction(args: argparse.Namespace, clip: Clip | None) -> str:
    """The report's introduction: what it shows and how it was made."""
    text = "What a learned word can do: images and scores of exercise E4's tasks 3b and 3c."
    measured = (
        f"Image and text alignment are cosine similarities by {clip.name}."
        if clip
        else "No CLIP could be reached, so image and text alignment are missing."
    )
    how = (
        f"Sampled with {args.steps} steps of {args.sampler} and guidance {args.guidance_scale:g}, by "
        f"{Path(args.model).name}; image i of every row starts from the same noise, seed {args.seed} + i. {measured}"
    )
    return html.paragraph(text) + html.paragraph(how, "soft")


BOUNDS = (
    "Image alignment (CLIP-I): mean CLIP similarity to the training images. Its lower bound is the same prompt with "
    "the initializer word, its upper bound the training images among themselves. Text alignment (CLIP-T): similarity "
    "to the prompt without the word. Its lower bound is the training images, which do not follow the prompt, its upper "
    "bound the initializer word. An image of two things is never as similar to either as an image of that one alone."
)


def evaluate(args: argparse.Namespace, model: minti.StableDiffusion, encode: adapters.Encode) -> None:
    """Writes the report on one or two words."""
    begun, folder = time.perf_counter(), args.output
    subjects = open_subjects(args, model, CONCEPTS)
    toybox = open_toybox(model, args.model)
    templates = args.templates or (TEMPLATES if toybox is None else toybox.templates)
    planned = rows.plan(templates, subjects)
    if len(subjects) == 1 and len(planned) < len(templates):
        warnings.warn(f"prompts for two words need a second one; {subjects[0].word} is evaluated alone", stacklevel=2)
    clip, artist = find_clip(args, toybox), Artist(args, model)
    artist.encode = encode
    for i, subject in enumerate(subjects):
        if args.learns:
            learn(args, artist, subject, folder / f"word-{i}")
        print(subject.summary)

    rows.draw(planned, artist, args.samples)
    rows.measure(planned, clip, toybox)
    rows.write_pictures(planned, folder).save(folder / "page.png")
    studies.write_table(folder / "scores.csv", rows.records(planned))
    for row in planned:
        print(f"{row.prompt}: {row.sentence}" if row.sentence else row.prompt)

    report = html.Report(f"{' and '.join(subject.word for subject in subjects)}, evaluated", introduction(args, clip))
    bounds = html.paragraph(BOUNDS, "soft") if clip else ""
    for words, question in QUESTIONS.items():
        if asked := [row for row in planned if len(row.subjects) == words]:
            report.section(question, bounds if words == 1 else "", *rows.cards(asked))
    made = {
        "words": ("The learned embedding vectors", lambda: studies.words(model, toybox, subjects, folder)),
        "learning": ("During the training", lambda: studies.learning(artist, subjects, folder)),
        "guidance": ("Guidance scale", lambda: studies.guidance(artist, planned, clip, folder)),
        "attention": ("Cross-attention maps", lambda: studies.attention(artist, planned, toybox, subjects, folder)),
        "together": ("Both in one image", lambda: studies.together(artist, planned, toybox, folder)),
    }
    counts = {len(row.subjects) for row in planned}
    for name, (title, study) in made.items():
        if name in args.sections and NEEDED.get(name, min(counts)) in counts:
            report.section(title, *study())
    report.section("The important parts of the evaluation's code", html.code(rows.snippet()))
    minutes = (time.perf_counter() - begun) / 60
    report.introduction += html.paragraph(f"{artist.drawn} images in {minutes:.1f} minutes on {args.device}.", "soft")
    report.write(folder / "report.html")
    count = sum(len(row.pictures) for row in planned)
    print(f"wrote {folder}/report.html, page.png, {count} images, their grids and tables")


def main() -> None:
    """Loads the model, with its adapters, and evaluates."""
    args = parse()
    make_output(args.output)
    model = load(args)
    with adapters.attached(args, model) as encode:
        evaluate(args, model, encode)


if __name__ == "__main__":
    run(main)
