"""How soon is a word learned? All held-out toys, several ways and diffusers' recipe, until the judge recognises them.

    python examples/toybox/time_to_word.py
    python examples/toybox/time_to_word.py --ways "two rows" recipe --toys test --seeds 0 1 2

A word is there as soon as shape, pattern and both colours are right in 14 of 16 drawings of "a photo of a <word>". The
clock stands still while the judge looks on. A way then goes on to its own end; the recipe has none, and stops there, or
after 300 steps. The ways take turns with every toy, so that they share the machine's moods. The recipe needs
diffusers (`pip install -e '.[test]'`).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from support.command_line import arguments, generators, load, make_output, run, whole
from support.diffusers_recipe import Diffusers
from support.studies import write_table

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import torch
from tqdm import tqdm

import minti
import world
from draw_concepts import concept_name
from held_out import TOYS, pixels_of, wrappers_to_train
from measure import load_judge, recognised, verdicts

WORD = "<concept>"
WAYS = {
    "defaults": {},
    "two rows": {"vectors": 2},
    "rows as needed": {"vectors": "auto"},
    "found initializer": {"initializer": "auto"},
    "short phrase": {"initializer": "{main} {shape}"},
    "full phrase": {"initializer": "{main} {shape} with a {second} {pattern}"},
    "recipe": {},
}
LOOKS = 16  # drawings
ENOUGH = 14  # of them right
RECIPE_STEPS = 300
# After every step, the first time before the first: what gives a model that knows the word as it is now.
Learning = Iterator[Callable[[], minti.StableDiffusion]]


def by_minti(args: argparse.Namespace, toy: world.Toy, seed: int, **how: object) -> Learning:
    """minti's defaults, but for what `how` says; a phrase says it in the toy's own words."""
    model, pictures = load(args), pixels_of(toy)
    if "initializer" in how:
        how["initializer"] = how["initializer"].format(**vars(toy))
    yield lambda: model
    for wrapper in wrappers_to_train(model, WORD, pictures, seed=seed, **how):
        for _ in minti.textual_inversion(wrapper, pictures):
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
    """Runs to the end, or unless `go_on` until the word is there; asks the judge `every` so many steps, and at the end.

    Returns:
        steps and seconds "to the word" (infinite where it never was there) and "in all"; how many drawings are "right"
        in the end.
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


def summary(way: str, rows: list[dict]) -> str:
    """One line of the table: medians over toys and seeds, in which a word that was never there took for ever."""
    middle = {key: statistics.median(row[key] for row in rows) for key in rows[0] if key.endswith(("word", "all"))}
    there = sum(math.isfinite(row["steps to the word"]) for row in rows)
    kept = sum(row["right"] >= ENOUGH for row in rows)
    cells = [f"{middle[f'{what} {when}']:.{0 if what == 'steps' else 1}f}" for when in ("to the word", "in all")
             for what in ("steps", "seconds")]  # fmt: skip
    right = 100 * sum(row["right"] for row in rows) / (LOOKS * len(rows))
    return f"| {way} | {there} of {len(rows)} | {' | '.join(cells)} | {kept} of {len(rows)} | {right:.0f} |"


def main() -> None:
    """Every way for every toy and seed; a table of medians, and all of it in time_to_word.csv."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/time-to-word")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="what to compare")
    parser.add_argument("--toys", choices=TOYS, default="all", help="which held-out toys to learn")
    parser.add_argument("--seeds", type=whole(0), nargs="+", default=[0], help="of the learning")
    parser.add_argument("--every", type=whole(1), default=10, help="steps between two looks of the judge")
    args = parser.parse_args()
    folder, judge = make_output(args.output), load_judge(args.model)

    def right_of(toy: world.Toy) -> Callable[[minti.StableDiffusion], int]:
        def right(model: minti.StableDiffusion) -> int:
            drawn = minti.sample(
                model,
                [f"a photo of a {WORD}"] * LOOKS,
                generator=generators(args.seed, LOOKS),
                sampler="dpm-solver++",
                num_inference_steps=15,
                guidance_scale=args.guidance_scale,
                output="pixels",
            )
            return sum(recognised(verdict, toy) for verdict in verdicts(judge, drawn))

        return right

    jobs = [(toy, seed, way) for toy in TOYS[args.toys] for seed in args.seeds for way in args.ways]
    rows = []
    for toy, seed, way in tqdm(jobs, "words", disable=True if args.quiet else None):
        recipe = way == "recipe"
        learning = by_recipe(args, toy, seed) if recipe else by_minti(args, toy, seed, **WAYS[way])
        row = follow(learning, right_of(toy), args.every, go_on=not recipe)
        rows.append({"toy": concept_name(toy), "seed": seed, "way": way} | row)
        write_table(folder / "time_to_word.csv", rows)

    print("| way | got there | steps | seconds | steps in all | seconds in all | right in the end | drawings, % |")
    print("|---" * 8 + "|")
    for way in args.ways:
        print(summary(way, [row for row in rows if row["way"] == way]))
    if pace := [row["seconds in all"] / row["steps in all"] for row in rows if row["way"] == "recipe"]:
        print(f"\nThe recipe's customary 3,000 steps would take {3000 * statistics.median(pace):.0f} s.")


if __name__ == "__main__":
    run(main)
