"""A class-conditional model from nothing: trained, guided without and with a classifier, its classes mixed (`002`, 15).

    python examples/toybox/class_conditional.py        (ten minutes, of which five train the model)

The steps of the exercise: a UNet learns toys of 16 x 16 pixels with their shape as label, which is dropped now and
then; a classifier learns noisy images; then classifier-free guidance, classifier guidance, FID, and blends of labels.
Writes guidance.csv and classes.png (classes x ways), mixed.csv and mixed.png.
"""

from study import Row, line, markdown, options
from support.command_line import finite, make_output, run, whole
from support.pages import page
from support.studies import write_table

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import permutations
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minti.formats.image_files import save_png
from minti.guidance.gradients import Guidance, classifier_guidance
from minti.images import to_pil
from minti.scheduler import NoiseScheduler
from small_diffusion import ClassConditional, Recipe, sampled, trained
from small_toys import CLASSES, Classifier, judged, measured, small_toys, trained_classifier, true_images

COLUMNS = {"way": "", "right": ".1%", "fid": ".2f", "kid": ".3f", "inception_score": ".2f", "time": ".1f"}
SHOWN = (("star", "circle"), ("moon", "heart"), ("cross", "diamond"), ("triangle", "square"))


class Parts(NamedTuple):
    """What the exercise needs: the model, its schedule, the classifier of noisy images, the judge, and the judge's
    features of true images."""

    model: ClassConditional
    scheduler: NoiseScheduler
    noisy: Classifier
    judge: Classifier
    real: Tensor


def mixed(first: int, second: int, share: float) -> Tensor:
    """Class mixing: a blended label, `share` of one class and the rest of another, (k,) (`002`, 15, 6)."""
    return torch.lerp(*torch.eye(len(CLASSES))[[second, first]], share)


def uphill(noisy: Classifier, scheduler: NoiseScheduler, classes: Tensor, s: float) -> Callable[[slice], Guidance]:
    """Classifier guidance towards each image's class, (n,): a `Guidance` for a slice of them."""
    return lambda some: classifier_guidance(scheduler, partial(noisy.log_probability, classes=classes[some]), s)


def ways(args: argparse.Namespace, parts: Parts, classes: Tensor) -> dict[str, dict[str, Any]]:
    """{name: options of `sampled`}: without a label, then guidance without a classifier, and with one."""
    labels = F.one_hot(classes, len(CLASSES)).float()
    nothing = torch.zeros_like(labels)
    by_label = {f"label, w = {w:g}": {"labels": labels, "scale": 1 + w} for w in args.scales}
    by_classifier = {
        f"classifier, s = {s:g}": {"labels": nothing, "guidance": uphill(parts.noisy, parts.scheduler, classes, s)}
        for s in args.classifier_scales
    }
    return {"no label": {"labels": nothing}} | by_label | by_classifier


def guided(args: argparse.Namespace, parts: Parts) -> Iterator[Row]:
    """Guidance: each way samples the same classes from the same noise. First what FID says of the true images that are
    compared with, of others, and of noise."""
    classes, (same, known), (others, seen) = (torch.arange(args.count) % len(CLASSES), *true_images(args.count))
    yield {"way": "the same true images"} | measured(parts.judge, same, known["shape"], parts.real)
    yield {"way": "other true images"} | measured(parts.judge, others, seen["shape"], parts.real)
    noise = torch.randn(others.shape, generator=torch.Generator().manual_seed(args.seed))
    yield {"way": "pure noise"} | measured(parts.judge, noise, classes, parts.real)
    shown, least = {}, None
    for way, how in ways(args, parts, classes).items():
        begun = time.process_time()
        pixels = sampled(parts.model, parts.scheduler, steps=args.sampling_steps, seed=args.seed, **how)
        taken = time.process_time() - begun
        least = least or taken
        shown[way] = to_pil(pixels[: len(CLASSES)])
        lines = [(name, [images[i] for images in shown.values()]) for i, name in enumerate(CLASSES) if i < args.count]
        save_png(page(lines, 112, list(shown)), args.output / "classes.png")
        yield {"way": way, "time": taken / least} | measured(parts.judge, pixels, classes, parts.real)


@torch.no_grad()
def accuracy(args: argparse.Namespace, parts: Parts, t: int) -> float:
    """Of the classifier that guides, on true images with the noise of timestep t."""
    (pixels, seen), _ = true_images(args.count)
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(t))
    answers = parts.noisy(parts.scheduler.add_noise(pixels, noise, t), torch.full((len(pixels),), t))["shape"]
    return (answers.argmax(dim=1) == seen["shape"]).double().mean().item()


def blends(args: argparse.Namespace, parts: Parts) -> Iterator[Row]:
    """Class mixing: what the judge sees in images of a blended label, of all ordered pairs of classes."""
    pairs = list(permutations(range(len(CLASSES)), 2)) * args.mixed
    for share in (0.9, 0.7, 0.5):
        for w in args.mixing_scales:
            labels = torch.stack([mixed(first, second, share) for first, second in pairs])
            pixels = sampled(parts.model, parts.scheduler, labels, 1 + w, steps=args.sampling_steps, seed=args.seed)
            seen = judged(parts.judge, pixels)[1]["shape"].argmax(dim=1)
            first, second = ((seen == torch.tensor(side)).double().mean().item() for side in zip(*pairs))
            yield {"share": share, "w": w, "first": first, "second": second, "neither": 1 - first - second}


def show_mixed(args: argparse.Namespace, parts: Parts) -> None:
    """A page: from one class to another by blended labels, at w = 2, from one noise in each row."""
    shares, lines = (1, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0), []
    for seed, names in enumerate(SHOWN):
        labels = torch.stack([mixed(*map(CLASSES.index, names), share) for share in shares])
        how = {"steps": args.sampling_steps, "seed": seed, "alike": True}
        pixels = sampled(parts.model, parts.scheduler, labels, 3, **how)
        lines.append((f"{names[0]}, {names[1]}", to_pil(pixels)))
    save_png(page(lines, 64, [f"{share:g}" for share in shares]), args.output / "mixed.png")


def printed(args: argparse.Namespace, name: str, rows: Iterable[Row], columns: dict[str, str]) -> None:
    """Prints rows as they come, and keeps them in NAME.csv."""
    found: list[Row] = []
    for row in rows:
        found.append(row)
        write_table(args.output / f"{name}.csv", found)
        both = row | {key: (row[key], row[f"{key}_error"]) for key in row if f"{key}_error" in row}
        print(line(both, columns) if len(found) > 1 else markdown([both], columns), flush=True)


def main() -> None:
    """Trains the three networks, or loads those that are in --output; then the two tables and pages."""
    parser = options(__doc__, "outputs/class_conditional", count=256)
    parser.add_argument("--steps", type=whole(1), default=Recipe.steps, help="optimizer steps of the model")
    parser.add_argument("--classifier-steps", type=whole(1), default=600, help="of the judge, and of that which guides")
    parser.add_argument("--sampling-steps", type=whole(1), default=50, help="DDPM's steps")
    parser.add_argument("--pictures", type=whole(64), default=8192, help="number of training images")
    parser.add_argument("--scales", type=finite, nargs="+", default=[0, 1, 3], help="w, of guidance without")
    scales = {"type": finite, "nargs": "+", "default": [1, 3]}
    parser.add_argument("--classifier-scales", help="s, of guidance with a classifier", **scales)
    parser.add_argument("--mixing-scales", type=finite, nargs="+", default=[0, 2], help="w, of blended labels")
    parser.add_argument("--mixed", type=whole(1), default=4, help="images of each of the 56 pairs of classes")
    args = parser.parse_args()
    make_output(args.output)
    pixels, labels = small_toys(args.pictures, 0)
    recipe = replace(Recipe(), steps=args.steps)
    model, _ = trained(recipe, args.output / f"0-{args.seed}.pt", pixels, labels["shape"], args.seed, args.quiet)
    networks = [
        trained_classifier(args.output / f"{name}.safetensors", pixels, labels, noise, args.classifier_steps, seed)
        for name, noise, seed in (("noisy", recipe.scheduler(), 8), ("judge", None, 7))
    ]
    real = judged(networks[1], true_images(args.count)[0][0])[0]
    parts = Parts(model, recipe.scheduler(), *networks, real)
    shares = (f"{accuracy(args, parts, t):.0%} at t = {t}" for t in (0, 100, 300, 500, 700))
    print("the classifier of noisy images is right in", ", ".join(shares), end="\n\n")
    printed(args, "guidance", guided(args, parts), COLUMNS)
    print()
    seen = dict.fromkeys(("first", "second", "neither"), ".0%")
    printed(args, "mixed", blends(args, parts), {"share": "", "w": ""} | seen)
    show_mixed(args, parts)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    run(main)
