"""What each choice in the training of a diffusion model is worth: one table with a row for each recipe.

    python examples/toybox/compare_training.py --seeds 0        (five minutes for each recipe)

Noise schedule, what the network predicts, the loss, the average of the weights, skip connections, dropped labels: each
changed alone, with the same number of steps, the same images in the same order and the same noise. Evaluated without
guidance by the judge of `small_toys.py`. Rows are kept in training.csv; finished ones are not measured again.
"""

from study import Row, markdown, mean_and_error, options
from support.command_line import make_writable, run, whole
from support.pages import page
from support.studies import write_table

import argparse
import csv
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minti.formats.image_files import save_png
from minti.images import to_pil
from small_diffusion import Recipe, sampled, trained
from small_toys import CLASSES, Classifier, judged, measured, small_toys, trained_classifier, true_images

BASELINE = "baseline"
RECIPES = {
    BASELINE: {},
    "cosine schedule": {"schedule": "squaredcos_cap_v2"},
    "predicts x_0": {"prediction": "sample"},
    "predicts v": {"prediction": "v_prediction"},
    "without skip connections": {"skips": False},
    "learning rate to 0": {"decay": True},
    "labels as numbers": {"one_hot": False},
    "L1": {"loss": "L1"},
    "Huber": {"loss": "Huber"},
    "no label dropped": {"dropout": 0.0},
    "cosine schedule, predicts v": {"schedule": "squaredcos_cap_v2", "prediction": "v_prediction"},
}
WITHOUT_AVERAGE = (BASELINE, "learning rate to 0")  # of which the last weights of the same run are measured, too
HEADINGS = {"right": "right shape, %", "fid": "FID", "kid": "KID"}
NUMBERS = ("right", "right_error", "fid", "fid_error", "kid", "kid_error", "inception_score")


def measure(
    args: argparse.Namespace, name: str, seed: int, judge: Classifier, real: Tensor, data: tuple[Tensor, Tensor]
) -> Iterator[Row]:
    """Trains a recipe with a seed, and measures its images."""
    recipe, number = replace(Recipe(**RECIPES[name]), steps=args.steps), list(RECIPES).index(name)
    models = trained(recipe, args.output / f"{number}-{seed}.pt", *data, seed, args.quiet)
    classes = torch.arange(args.count) % len(CLASSES)
    labels = recipe.encoded(classes)
    for row, (model, sampler) in names(name).items():
        how = {"steps": args.sampling_steps, "sampler": sampler, "seed": seed}
        pixels = sampled(models[model], recipe.scheduler(), labels, **how)
        save_png(page([(row, to_pil(pixels[:16]))], 48), strip(args.output, row, seed))
        yield {"recipe": row, "seed": seed} | measured(judge, pixels, classes, real)


def names(recipe: str) -> dict[str, tuple[int, str]]:
    """Its rows: {name: (0 for the average of the weights or 1 for the last ones, the sampler)}."""
    rows = {recipe: (0, "ddpm")}
    if recipe in WITHOUT_AVERAGE:
        rows[f"{recipe}, last weights"] = (1, "ddpm")
    return rows | ({f"{recipe}, sampled by DDIM": (0, "ddim")} if recipe == BASELINE else {})


def strip(folder: Path, row: str, seed: int) -> Path:
    """The file with the first images of a row."""
    return folder / f"{row.replace(' ', '-')}-{seed}.png"


def stacked(paths: list[Path]) -> Image.Image:
    """Strips of one width, one below the other."""
    return Image.fromarray(np.concatenate([np.asarray(Image.open(path)) for path in paths if path.exists()]))


def kept(path: Path) -> list[Row]:
    """The rows that have been measured."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        read = csv.DictReader(file)
        return [row | {name: float(row[name]) for name in NUMBERS} | {"seed": int(row["seed"])} for row in read]


def table(found: list[Row]) -> str:
    """The mean over seeds; the error is that of the images, of all seeds together, and for several seeds, if that is
    larger, that between them."""
    lines = []
    for recipe in dict.fromkeys(row["recipe"] for row in found):
        group = [row for row in found if row["recipe"] == recipe]
        line: Row = {"recipe": recipe, "seeds": len(group)}
        for name, heading in HEADINGS.items():
            mean, between = mean_and_error([row[name] for row in group])
            error = sum(row[f"{name}_error"] ** 2 for row in group) ** 0.5 / len(group)
            line[heading] = mean, max(error, between if len(group) > 1 else 0)
        lines.append(line | {"Inception Score": sum(row["inception_score"] for row in group) / len(group)})
    forms = dict(zip(HEADINGS.values(), (".1%", ".2f", ".3f")))
    return markdown(lines, {"recipe": "", "seeds": ""} | forms | {"Inception Score": ".2f"})


def main() -> None:
    """Trains, measures, and prints the table of all rows so far."""
    parser = options(__doc__, "outputs/compare_training", RECIPES, count=512)
    parser.add_argument("--steps", type=whole(1), default=Recipe.steps, help="optimizer steps of each recipe")
    parser.add_argument("--sampling-steps", type=whole(1), default=50, help="DDPM's steps")
    parser.add_argument("--seeds", type=whole(0), nargs="+", default=[0, 1])
    parser.add_argument("--pictures", type=whole(64), default=8192, help="number of training images")
    parser.add_argument("--judge-steps", type=whole(1), default=600)
    args = parser.parse_args()
    make_writable(args.output)
    pixels, labels = small_toys(args.pictures, 0)
    judge = trained_classifier(args.output / "judge.safetensors", pixels, labels, None, args.judge_steps, 7, args.quiet)
    (same, _), (others, seen) = true_images(args.count)
    real, path = judged(judge, same)[0], args.output / "training.csv"
    found = kept(path)
    if not found:
        found = [{"recipe": "true images", "seed": 0} | measured(judge, others, seen["shape"], real)]
    for seed, name in product(args.seeds, args.ways):
        done = {(row["recipe"], row["seed"]) for row in found}
        if not all((row, seed) in done for row in names(name)):
            new = list(measure(args, name, seed, judge, real, (pixels, labels["shape"])))
            found = [
                row for row in found if (row["recipe"], row["seed"]) not in [(r["recipe"], seed) for r in new]
            ] + new
            write_table(path, found)
            print(table(new), flush=True)
    print(table(found))
    strips = [strip(args.output, row["recipe"], row["seed"]) for row in found[1:] if row["seed"] == args.seeds[0]]
    save_png(stacked(strips), args.output / "training.png")


if __name__ == "__main__":
    run(main)
