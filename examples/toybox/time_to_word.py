"""Training time of textual inversion: all held-out toys, several ways and diffusers' recipe, until the judge sees them.

    python examples/toybox/time_to_word.py
    python examples/toybox/time_to_word.py --ways "two rows" recipe --toys test --seeds 0 1 2

A word is learned as soon as shape, pattern and both colours are right in 14 of 16 samples of "a photo of a <word>". The
clock is stopped for the judge. A way then goes on to its own end; the recipe has none, and stops there, or after 300
steps. The ways take turns with every toy, so that changes of the machine's speed affect them alike. The recipe needs
diffusers (`pip install -e '.[test]'`).
"""

from study import Row, Study, column, of, options, report
from support.command_line import load, run, whole
from support.diffusers_recipe import Diffusers

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import minti
import world
from draw_concepts import concept_name
from held_out import TOYS, pixels_of, wrappers_to_train
from measure import recognised, verdicts

WORD = "<concept>"
WAYS = {
    "defaults": {},
    "two rows": {"vectors": 2},
    "rows as needed": {"vectors": "auto"},
    "found initializer": {"initializer": "auto"},
    "short phrase": {"initializer": "{main} {shape}"},
    "full phrase": {"initializer": "{main} {shape} with a {second} {pattern}"},
    "batch size 1": {"batch_size": 1},
    "1, accumulated over 8": {"batch_size": 1, "gradient_accumulation": 8},
    "recipe": {},
}
LOOKS = 16  # samples
ENOUGH = 14  # of them right
RECIPE_STEPS = 300
# After every step, the first time before the first: what gives a model with the word as it is now.
Learning = Iterator[Callable[[], minti.StableDiffusion]]


def by_minti(args: argparse.Namespace, toy: world.Toy, seed: int, **how: object) -> Learning:
    """minti's defaults, but for `how`; a phrase is filled with the toy's own words."""
    model, pictures = load(args), pixels_of(toy)
    if "initializer" in how:
        how["initializer"] = how["initializer"].format(**vars(toy))
    yield lambda: model
    for wrapper in wrappers_to_train(model, WORD, pictures, seed=seed, **how):
        for _ in minti.monitored(minti.textual_inversion(wrapper, pictures)):
            yield lambda: model


def by_recipe(args: argparse.Namespace, toy: world.Toy, seed: int) -> Learning:
    """diffusers' example: batches of one, four accumulated, at 5e-4 times four."""
    torch.manual_seed(seed)
    engine = Diffusers(args.model, args.device, torch.float32, batch=1)
    engine.prepare_training(pixels_of(toy))
    engine.optimizer, engine.accumulation = torch.optim.AdamW([engine.weight], lr=4 * 5e-4), 4

    def model() -> minti.StableDiffusion:
        with tempfile.TemporaryDirectory() as folder:
            engine.save(Path(folder) / "word.safetensors")
            known = load(args)
            minti.load_embeddings(known, Path(folder) / "word.safetensors")
        return known

    yield model
    for _ in range(RECIPE_STEPS):
        engine.train_step()
        yield model


def follow(learning: Learning, right: Callable[[minti.StableDiffusion], int], every: int, go_on: bool) -> dict:
    """Trains to the end, or unless `go_on` until the word is learned; asks the judge `every` so many steps and at last.

    Returns steps and seconds "to the word" (infinite where it was never learned) and "in all"; how many samples are
    "right" in the end.
    """
    row = {"steps to the word": math.inf, "seconds to the word": math.inf}
    model = next(learning)
    seconds, begin = 0.0, time.perf_counter()
    for step, model in enumerate(learning, start=1):
        if step % every == 0 and math.isinf(row["steps to the word"]):
            seconds += time.perf_counter() - begin
            if right(model()) >= ENOUGH:
                row = {"steps to the word": step, "seconds to the word": seconds}
                if not go_on:
                    break
            begin = time.perf_counter()
    else:
        seconds += time.perf_counter() - begin
    return row | {"steps in all": step, "seconds in all": seconds, "right": right(model())}


# Medians over toys and seeds, in which a word that was never learned took for ever.
COLUMNS = {
    "got there": ("", lambda rows: f"{sum(map(math.isfinite, column(rows, 'steps to the word')))} of {len(rows)}"),
    "steps": (".0f", of("steps to the word", statistics.median)),
    "seconds": (".1f", of("seconds to the word", statistics.median)),
    "steps in all": (".0f", of("steps in all", statistics.median)),
    "seconds in all": (".1f", of("seconds in all", statistics.median)),
    "right in the end": ("", lambda rows: f"{sum(x >= ENOUGH for x in column(rows, 'right'))} of {len(rows)}"),
    "samples, %": (".0%", of("right", lambda found: statistics.mean(found) / LOOKS)),
}


def rows(study: Study) -> Iterator[Row]:
    """Every way for every toy and seed."""
    args = study.args
    jobs = [(toy, seed, way) for toy in TOYS[args.toys] for seed in args.seeds for way in args.ways]
    for toy, seed, way in study.bar(jobs, "words"):

        def right(model: minti.StableDiffusion, toy: world.Toy = toy) -> int:
            pixels = study.sample([f"a photo of a {WORD}"] * LOOKS, model)
            return sum(recognised(verdict, toy) for verdict in verdicts(study.judge, pixels))

        recipe = way == "recipe"
        learning = by_recipe(args, toy, seed) if recipe else by_minti(args, toy, seed, **WAYS[way])
        yield {"toy": concept_name(toy), "seed": seed, "way": way} | follow(learning, right, args.every, not recipe)


def main() -> None:
    """A table of medians; all of it is in time_to_word.csv."""
    parser = options(__doc__, "outputs/time-to-word", WAYS)
    parser.add_argument("--toys", choices=TOYS, default="all", help="which held-out toys to learn")
    parser.add_argument("--seeds", type=whole(0), nargs="+", default=[0], help="of the learning")
    parser.add_argument("--every", type=whole(1), default=10, help="steps between two looks of the judge")
    parser.set_defaults(sampler="dpm-solver++", steps=15)
    study = Study(parser)
    found = study.table("time_to_word", rows(study))
    print(report(found, "way", COLUMNS))
    if pace := [row["seconds in all"] / row["steps in all"] for row in found if row["way"] == "recipe"]:
        print(f"\nThe recipe's customary 3,000 steps would take {3000 * statistics.median(pace):.0f} s.")


if __name__ == "__main__":
    run(main)
