"""Textual inversion, LoRA, both, and DreamBooth on the same five images, side by side, by the judge.

    python examples/toybox/compare_learning.py                       # twelve held-out toys, three seeds: hours
    python examples/toybox/compare_learning.py --toys 0 1 --seeds 0  # some of them; what is there is not redone
    python examples/toybox/compare_learning.py --pairs               # then: two of the toys in one image

Prints a table of what the output folder has by then; several processes can share a folder. Its seconds are the
processor's: on one thread (OMP_NUM_THREADS=1) of a quiet machine those of the clock.
"""

from study import Row, Study, column, mean_and_error, of, options, report
from support.command_line import run, whole

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from itertools import combinations
from pathlib import Path

from PIL import Image

import minti
import world
from data import write_json
from held_out import pixels_of, wrappers_to_train
from measure import tally, tally_rates
from minti.embeddings import read_embeddings
from minti.evaluation.clip_scores import among_themselves, mean_similarity
from minti.images import to_pil

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
LOOKS, ENOUGH = 8, 7  # samples when the clock stops, and how many of them must be right
COLUMNS = ("alone", "in styles", "in company", "obeyed", "leaked", "another toy")  # per cent
# After every step: what prompts call the thing, and a context in which the model has it.
Learning = Iterator[tuple[str, Callable[[], AbstractContextManager]]]


class Comparison(Study):
    """One model after another, and the judge."""

    def path(self, way: str, toy: int, seed: int, end: str = ".json") -> Path:
        """The file of a run."""
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
                for _ in minti.monitored(minti.textual_inversion(word, pictures)):
                    yield WORD, nullcontext
        if settings is None:
            minti.save_embeddings(word, self.path(way, toy, seed, ".safetensors"))
            return
        config = minti.DreamBoothConfig(initializer_token=CLASS, class_pictures=64, seed=seed, **settings)
        classes = minti.class_pictures(model, config, self.folder / "class-pictures") if config.prior_weight else ()
        training = minti.DreamBooth(model, config, word)
        for _ in minti.dreambooth(training, pictures, classes):
            yield training.subject, partial(training.adapter.attached, model)
        if training.lora:
            minti.save_lora(training.lora, self.path(way, toy, seed, "-lora.safetensors"))
        if word:
            minti.save_embeddings(word, self.path(way, toy, seed, ".safetensors"))

    def one(self, way: str, toy: int, seed: int) -> dict[str, float]:
        """Trains, with the clock stopped for the judge, and measures the result."""
        model, shape = self.fresh(), world.HELD_OUT[toy]
        steps, seconds, recognised, known = 0, 0.0, math.nan, self.path("word", toy, seed)
        if way == "word + LoRA" and known.is_file():
            seconds = json.loads(known.read_text(encoding="utf-8"))["seconds"]
        begin = time.process_time()
        for subject, inside in self.learning(way, model, toy, seed):
            steps += 1
            if seed == 0 and math.isnan(recognised) and steps % 10 == 0:
                seconds += time.process_time() - begin
                with inside():
                    right = self.right(model, ALONE.format(subject), [shape], LOOKS, 10)
                recognised = seconds if right >= ENOUGH / LOOKS else math.nan
                begin = time.process_time()
        seconds += time.process_time() - begin
        with inside():
            return self.measure(model, subject, shape) | {"seconds": seconds, "recognised": recognised, "steps": steps}

    def draw(self, model: minti.StableDiffusion, prompt: str, count: int, steps: int = 15) -> list[Image.Image]:
        """Samples, whose noise is the same for every way."""
        return to_pil(self.sample([prompt] * count, model, num_inference_steps=steps))

    def right(
        self, model: minti.StableDiffusion, prompt: str, toys: list[world.Toy], count: int = 8, steps: int = 15
    ) -> float:
        """The share of samples in which the judge sees everything of the first of the toys."""
        return tally_rates(self.judge, self.draw(model, prompt, count, steps), prompt, toys)[1]["all"]

    def measure(self, model: minti.StableDiffusion, subject: str, toy: world.Toy) -> dict[str, float]:
        """The judge and the toybox's CLIP on a toy that was learned, and on all that was not."""
        alone, others = self.draw(model, ALONE.format(subject), 8), self.draw(model, f"a photo of a {CLASS}", 16)
        placed = self.draw(model, PLACED.format(subject), 8)
        return {
            "alone": tally_rates(self.judge, alone, ALONE, [toy])[1]["all"],
            "in styles": statistics.mean(self.right(model, p.format(subject), [toy], 4) for p in STYLES),
            "in company": self.right(model, PAIR.format(subject, HEART.looks), [toy, HEART]),
            "obeyed": tally_rates(self.judge, placed, PLACED, [toy])[0]["all"],
            "leaked": tally_rates(self.judge, others, ALONE, [toy])[1]["all"],
            "another toy": self.right(model, ALONE.format(STAR.looks), [STAR]),
            "likeness": mean_similarity(self.clip.images(alone), self.clip.images(to_pil(pixels_of(toy)))),
            "alike": among_themselves(self.clip.images(others)),
        }

    def pair(self, way: str, a: int, b: int, seed: int) -> dict[str, float]:
        """Two toys in one prompt, each with its learned weights: the shares in which both are right, and a toy."""
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

    def keep(self, way: str, toy: int, seed: int, measures: Callable[[], dict[str, float]]) -> None:
        """The measures of a run as a file, unless it is there."""
        if not (path := self.path(way, toy, seed)).is_file():
            write_json(path, {"way": way, "toy": toy, "seed": seed} | measures())


def recognised(rows: list[Row]) -> str | None:
    """The median seconds until the judge recognised the toy, where it was asked, and in how many runs it did."""
    looked = column(rows, "recognised", seed=0)
    there = [seconds for seconds in looked if not math.isnan(seconds)]
    return f"{statistics.median(there):.0f} ({len(there)} of {len(looked)})" if there else None


def table(folder: Path) -> str:
    """Means and standard errors of all runs in the folder."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("toy-*.json"))]
    runs.sort(key=lambda run: [*WAYS, "nothing"].index(run["way"]))
    columns = {"runs": ("", len)} | {name: (".0%", of(name, mean_and_error)) for name in COLUMNS}
    columns |= {"likeness": (".2f", of("likeness")), "'a toy' alike": (".2f", of("alike"))}
    columns |= {"seconds to it": ("", recognised), "in all": (".0f", of("seconds", statistics.median))}
    return report(runs, "way", columns)


def main() -> None:
    """Every way for every toy and seed, or pairs of them; then the table."""
    parser = options(__doc__, "outputs/learning", WAYS)
    parser.add_argument("--toys", type=whole(0, 11), nargs="+", default=list(range(12)), help="which held-out toys")
    parser.add_argument("--seeds", type=whole(0), nargs="+", default=[0, 1, 2], help="of the learning")
    parser.add_argument("--pairs", action="store_true", help="sample two of the toys in one image")
    parser.add_argument("--every", type=whole(1), default=3, help="with --pairs: every so many-th pair")
    parser.add_argument("--lora-weight", type=float, default=1.0, help="with --pairs")
    parser.set_defaults(sampler="dpm-solver++", steps=15)
    comparison = Comparison(parser, shared=True)
    args = comparison.args
    if args.pairs:
        chosen = list(combinations(args.toys, 2))[:: args.every]
        jobs = [(way, *pair, seed) for way in args.ways if "word" in way for seed in args.seeds for pair in chosen]
        found = [{"way": way} | comparison.pair(way, *job) for way, *job in comparison.bar(jobs, "pairs")]
        columns = {name: (".0%", of(name, mean_and_error)) for name in ("both", "a toy")}
        print(report(found, "way", {"pairs": ("", len)} | columns))
        return
    for seed in args.seeds:
        for toy in args.toys:
            for way in args.ways:
                comparison.keep(way, toy, seed, partial(comparison.one, way, toy, seed))
    untrained = {"seconds": 0.0, "recognised": math.nan}
    model = comparison.model
    comparison.keep("nothing", 0, 0, lambda: comparison.measure(model, CLASS, world.HELD_OUT[0]) | untrained)
    print(table(comparison.folder))


if __name__ == "__main__":
    run(main)
