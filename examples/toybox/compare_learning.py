"""Side by side: the same five pictures learned as a word, a LoRA, both, and as the whole network, seen by the judge.

    python examples/toybox/compare_learning.py                       # twelve held-out toys, three seeds: hours
    python examples/toybox/compare_learning.py --toys 0 1 --seeds 0  # some of them; what is there is not redone
    python examples/toybox/compare_learning.py --pairs               # then: two of the toys in one picture

Prints a table of what the output folder has by then; several processes can share a folder. Its seconds are the
processor's: on one thread (OMP_NUM_THREADS=1) of a quiet machine those of the clock.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from support.command_line import arguments, load, make_writable, run, whole

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from itertools import combinations

import torch

import minti
import world
from attributes import tally
from held_out import pixels_of, wrappers_to_train
from measure import load_judge
from minti.embeddings import read_embeddings
from minti.evaluation.clip_scores import among_themselves, mean_similarity
from minti.images import to_pil
from minti.utils import replacing
from toy_clip import load_toy_clip

WORD, CLASS = "<concept>", "toy"
WAYS = {
    "word": None,
    "LoRA": {"learns": "lora", "learning_rate": 4e-3, "steps": 80},
    "word + LoRA": {"learns": "lora", "learning_rate": 2e-3, "steps": 100},
    "DreamBooth": {"learns": "network", "learning_rate": 2e-4, "steps": 100},
    "DreamBooth, no prior": {"learns": "network", "learning_rate": 2e-4, "steps": 100, "prior_weight": 0.0},
}
STAR, HEART = world.Toy("star", "stripe", "red", "blue"), world.Toy("heart", "spot", "white", "red")
ALONE, PAIR = "a photo of a {}", "a photo of a {} next to a {}"
STYLES = ("a cartoon of a {}", "a pixel art picture of a {}")
PLACED = "a photo of a {} on the left on a navy background"
LOOKS, ENOUGH = 8, 7  # drawings when the clock stops, and how many of them must be right
COLUMNS = ("alone", "in styles", "in company", "obeyed", "leaked", "another toy")  # per cent
# After every step: what prompts call the thing, and a context in which the model has it.
Learning = Iterator[tuple[str, Callable[[], AbstractContextManager]]]


class Comparison:
    """One model after another, and the judge."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.folder, self.judge = args, args.output, load_judge(args.model)
        self.fresh = partial(load, args)
        self.clip = load_toy_clip(self.fresh(), args.model)

    def path(self, way: str, toy: int, seed: int, end: str = ".json") -> Path:
        """Where something of a run lies."""
        return self.folder / f"toy-{toy}-seed-{seed}-{way.replace(' ', '-').replace(',', '')}{end}"

    def learning(self, way: str, model: minti.StableDiffusion, toy: int, seed: int) -> Learning:
        """Takes the steps of a way, and leaves its files."""
        pictures, word, settings = pixels_of(world.HELD_OUT[toy]), None, WAYS[way]
        if "word" in way:
            word, known = wrappers_to_train(model, WORD, pictures, seed=seed)[0], self.path("word", toy, seed)
            if settings and known.is_file():  # this very word has been learned already
                minti.prepare_for_textual_inversion(word)
                word.detach()
                rows = read_embeddings(known.with_suffix(".safetensors"))[WORD]
                word.embedding.load_state_dict({"values": rows})
                word.embedding.after_step(model)
            else:
                for _ in minti.textual_inversion(word, pictures):
                    yield WORD, nullcontext
        if settings is None:
            minti.save_embeddings(word, self.path(way, toy, seed, ".safetensors"))
            return
        config = minti.DreamBoothConfig(initializer_token=CLASS, class_pictures=64, seed=seed, **settings)
        classes = minti.class_pictures(model, config, self.folder / "class-pictures") if config.prior_weight else ()
        training = minti.DreamBooth(model, config, word)
        for _ in minti.dreambooth(training, pictures, classes):
            yield training.subject, partial(training.part.inside, model)
        if training.lora:
            minti.save_lora(training.lora, self.path(way, toy, seed, "-lora.safetensors"))
        if word:
            minti.save_embeddings(word, self.path(way, toy, seed, ".safetensors"))

    def one(self, way: str, toy: int, seed: int) -> dict[str, float]:
        """Learns, with the clock stopped while the judge looks, and measures what came of it."""
        model, shape = self.fresh(), world.HELD_OUT[toy]
        steps, seconds, recognised, known = 0, 0.0, math.nan, self.path("word", toy, seed)
        if way == "word + LoRA" and known.is_file():
            seconds = json.loads(known.read_text())["seconds"]
        looks, begin = seed == 0, time.process_time()
        for subject, inside in self.learning(way, model, toy, seed):
            steps += 1
            if looks and math.isnan(recognised) and steps % 10 == 0:
                seconds += time.process_time() - begin
                with inside():
                    right = self.right(model, ALONE.format(subject), [shape], LOOKS, 10)
                recognised = seconds if right >= ENOUGH / LOOKS else math.nan
                begin = time.process_time()
        seconds += time.process_time() - begin
        with inside():
            return self.measure(model, subject, shape) | {"seconds": seconds, "recognised": recognised, "steps": steps}

    def draw(self, model: minti.StableDiffusion, prompt: str, count: int, steps: int = 15) -> list:
        """Pictures whose noise is the same for every way."""
        noise = [torch.Generator().manual_seed(self.args.seed + i) for i in range(count)]
        options = {"sampler": "dpm-solver++", "num_inference_steps": steps, "output": "pixels"}
        return to_pil(minti.sample(model, [prompt] * count, generator=noise, **options))

    def right(
        self, model: minti.StableDiffusion, prompt: str, toys: list[world.Toy], count: int = 8, steps: int = 15
    ) -> float:
        """The share of drawings in which the judge sees everything of the first of the toys."""
        return tally(self.judge, self.draw(model, prompt, count, steps), prompt, toys)[1].get("all", 0) / count

    def measure(self, model: minti.StableDiffusion, subject: str, toy: world.Toy) -> dict[str, float]:
        """What the judge and the toybox's CLIP say of a toy that was learned, and of all that was not."""
        alone = self.draw(model, ALONE.format(subject), 8)
        placed, others = self.draw(model, PLACED.format(subject), 8), self.draw(model, f"a photo of a {CLASS}", 16)
        star = f"{STAR.main} {STAR.shape} with a {STAR.second} {STAR.pattern}"
        heart = f"{HEART.main} {HEART.shape} with a {HEART.second} {HEART.pattern}"

        def count(pictures: list, prompt: str, i: int) -> float:
            return tally(self.judge, pictures, prompt, [toy])[i].get("all", 0) / len(pictures)

        seen = self.clip.images(others)
        training = self.clip.images(to_pil(pixels_of(toy)))
        return {
            "alone": count(alone, ALONE, 1),
            "in styles": statistics.mean(self.right(model, p.format(subject), [toy], 4) for p in STYLES),
            "in company": self.right(model, PAIR.format(subject, heart), [toy, HEART]),
            "obeyed": count(placed, PLACED, 0),
            "leaked": count(others, ALONE, 1),
            "another toy": self.right(model, ALONE.format(star), [STAR]),
            "likeness": mean_similarity(self.clip.images(alone), training),
            "alike": among_themselves(seen),
        }

    def pair(self, way: str, a: int, b: int, seed: int) -> dict[str, float]:
        """Two toys in one prompt, each with what was learned of it: the shares in which both are right, and a toy."""
        model, toys = self.fresh(), [world.HELD_OUT[a], world.HELD_OUT[b]]
        with ExitStack() as stack:
            for name, i in (("<first>", a), ("<second>", b)):
                minti.load_embeddings(model, self.path(way, i, seed, ".safetensors"), name)
                if "LoRA" in way:
                    lora = minti.load_lora(model, self.path(way, i, seed, "-lora.safetensors"), self.args.lora_weight)
                    stack.enter_context(lora.attached(model))
            prompt = PAIR.format("<first>", "<second>")
            each = [tally(self.judge, [picture], PAIR, toys)[1:] for picture in self.draw(model, prompt, 4, 20)]
        both = statistics.mean(first["all"] and second["all"] for first, second in each)
        return {"both": both, "a toy": statistics.mean(kept["all"] for pair in each for kept in pair)}


def spread(values: list[float]) -> str:
    """Mean and standard error of runs, in per cent."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan
    return f"{100 * statistics.mean(values):.0f} ± {100 * error:.0f}"


def table(folder: Path) -> str:
    """All that the folder has."""
    lines = [f"| way | runs | {' | '.join(COLUMNS)} | likeness | 'a toy' alike | seconds to it | in all |"]
    lines.append("|---" * (len(COLUMNS) + 6) + "|")
    for way in (*WAYS, "nothing"):
        runs = [json.loads(path.read_text()) for path in sorted(folder.glob("toy-*.json"))]
        runs = [found for found in runs if found["way"] == way]
        if runs:
            cells = [spread([found[column] for found in runs]) for column in COLUMNS]
            cells += [f"{statistics.mean(found[name] for found in runs):.2f}" for name in ("likeness", "alike")]
            looked = [found["recognised"] for found in runs if found["seed"] == 0]
            there = [seconds for seconds in looked if not math.isnan(seconds)]
            cells.append(f"{statistics.median(there):.0f} ({len(there)} of {len(looked)})" if there else "")
            cells.append(f"{statistics.median(found['seconds'] for found in runs):.0f}")
            lines.append(f"| {way} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Every way for every toy and seed, or pairs of them; then the table."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/learning")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="what to compare")
    parser.add_argument("--toys", type=whole(0, 11), nargs="+", default=list(range(12)), help="which held-out toys")
    parser.add_argument("--seeds", type=whole(0), nargs="+", default=[0, 1, 2], help="of the learning")
    parser.add_argument("--pairs", action="store_true", help="draw two of the toys in one picture")
    parser.add_argument("--every", type=whole(1), default=3, help="with --pairs: every so many-th pair")
    parser.add_argument("--lora-weight", type=float, default=1.0, help="with --pairs")
    args = parser.parse_args()
    make_writable(args.output)
    comparison = Comparison(args)
    if args.pairs:
        for way in (way for way in args.ways if "word" in way):
            chosen = list(combinations(args.toys, 2))[:: args.every]
            found = [comparison.pair(way, *pair, seed) for seed in args.seeds for pair in chosen]
            cells = [f"{name} {spread([pair[name] for pair in found])}" for name in ("both", "a toy")]
            print(f"{way}, {len(found)} pairs: {', '.join(cells)}", flush=True)
        return
    for seed in args.seeds:
        for toy in args.toys:
            for way in args.ways:
                path = comparison.path(way, toy, seed)
                if not path.is_file():
                    found = {"way": way, "toy": toy, "seed": seed} | comparison.one(way, toy, seed)
                    with replacing(path) as temporary:
                        temporary.write_text(json.dumps(found))
    if not (path := comparison.path("nothing", 0, 0)).is_file():
        found = comparison.measure(comparison.fresh(), CLASS, world.HELD_OUT[0])
        found |= {"way": "nothing", "toy": 0, "seed": 0, "seconds": 0.0, "recognised": math.nan}
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(found))
    print(table(args.output))


if __name__ == "__main__":
    run(main)
