"""Evaluates the toybox's IP-Adapter: an image prompt beside a word learned from five images, by the judge.

    python examples/toybox/evaluate_ip_adapter.py

Both ways sample from the same prompts, "a toy" in the one, the word in the other, and from the same noises, of toys
that training never shows. Words are kept in --output, and learned only where they are missing. With --page also one
PNG of some of the samples.
"""

from study import Row, Study, of, options, report
from support.command_line import finite, run, whole

import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

import minti
import world
from draw_concepts import concept_name
from held_out import TOYS, pixels_of, wrappers_to_train
from measure import TOY, tally_rates
from minti.adapters.ip_adapter import load_ip_adapter
from minti.evaluation.grids import grid
from minti.formats.image_files import save_png
from minti.images import to_pil

WORD = "<concept>"
FILE = Path("ip_adapter") / "ip_adapter.safetensors"  # in the toybox's folder
PROMPTS = {
    "a photo": "a photo of a {}",
    "a cartoon": "a cartoon of a {}",
    "pixel art": "a pixel art picture of a {}",
    "at a place": "a photo of a {} on the right on a sand background",
}
WAYS = ("no picture", "one picture", "a word from five", "described")


class Ways:
    """Samples of a held-out toy: of "a toy" with and without an image prompt, of a learned word, of all its looks."""

    def __init__(self, study: Study):
        self.study, args = study, study.args
        self.adapter = load_ip_adapter(study.model, args.ip_adapter or Path(args.model) / FILE, args.ip_scale)
        self.seconds: list[float] = []  # that the words took

    def samples(self, way: str, toy: world.Toy, seed: int, templates: Sequence[str]) -> dict[str, list[Image.Image]]:
        """{prompt: images}; the image prompt is for every seed another of the five that the word is learned from."""
        subject = {"a word from five": WORD, "described": toy.looks}.get(way, "toy")
        model = self.learned(toy, seed) if subject == WORD else self.study.model
        prompts = [template.format(subject) for template in templates]
        if way != "one picture":
            return {prompt: self.draw(model, [prompt] * self.study.args.num_images, seed) for prompt in prompts}
        seen = self.study.clip.images(to_pil(pixels_of(toy)[[seed % 5]]))
        negative = {"negative_prompt": self.adapter.prompted(model.encode_prompt(""))}
        contexts = {prompt: model.encode_prompt([prompt] * self.study.args.num_images) for prompt in prompts}
        with self.adapter.attached(model):
            return {
                prompt: self.draw(model, self.adapter.prompted(context, seen), seed, **negative)
                for prompt, context in contexts.items()
            }

    def draw(self, model: minti.StableDiffusion, prompts: Any, seed: int, **options: Any) -> list[Image.Image]:
        """As many as asked for."""
        return to_pil(self.study.sample(prompts, model, seed=1000 * seed, batch_size=len(prompts), **options))

    def learned(self, toy: world.Toy, seed: int) -> minti.StableDiffusion:
        """A model that knows the word; learned with minti's defaults, unless its file is there."""
        path = self.study.folder / f"{concept_name(toy)}-{seed}.safetensors"
        model, begin = self.study.fresh(), time.perf_counter()
        if path.exists():
            minti.load_embeddings(model, path)
            return model
        (wrapper,) = wrappers_to_train(model, WORD, pixels_of(toy), seed=seed)
        for _ in minti.monitored(minti.textual_inversion(wrapper, pixels_of(toy))):
            pass
        self.seconds.append(time.perf_counter() - begin)
        minti.save_embeddings(wrapper, path)
        return model


def mean_and_spread(rates: list[float]) -> tuple[float, float]:
    """The mean, and the standard deviation over toys and seeds."""
    return statistics.mean(rates), statistics.pstdev(rates)


def rows(study: Study, ways: Ways) -> Iterator[list[Row]]:
    """The judge's accuracies for every toy, seed, way and prompt."""
    args = study.args
    jobs = [(toy, seed, way) for toy in TOYS[args.toys] for seed in args.seeds for way in args.ways]
    for toy, seed, way in study.bar(jobs):
        found = []
        for kind, (prompt, images) in zip(PROMPTS, ways.samples(way, toy, seed, list(PROMPTS.values())).items()):
            asked, kept = tally_rates(study.judge, images, prompt, [toy])
            row = {"toy": concept_name(toy), "seed": seed, "way": way, "prompt": kind}
            found.append(row | kept | {"obeyed": asked["all"]})
        yield found


def page(ways: Ways, toys: list[world.Toy]) -> Image.Image:
    """A row for every toy: the image prompt, three samples of the adapter, three of the word."""
    images = []
    for toy in toys:
        images += to_pil(pixels_of(toy)[:1])
        for way in ("one picture", "a word from five"):
            images += [drawn[0] for drawn in ways.samples(way, toy, 0, list(PROMPTS.values())[1:]).values()]
    return grid([image.resize((128, 128), Image.Resampling.NEAREST) for image in images], columns=7)


def main() -> None:
    """All ways for all toys and seeds; two tables, and every row in ip_adapter.csv."""
    parser = options(__doc__, "outputs/evaluate-ip-adapter", WAYS)
    parser.add_argument("--ip-adapter", type=Path, help="a file; default: the model's own")
    parser.add_argument("--ip-scale", type=finite, default=1.0, help="weight of the image prompt")
    parser.add_argument("--toys", choices=TOYS, default="test", help="which held-out toys")
    seeds_help = "of learning, of sampling, and which image is the prompt"
    parser.add_argument("--seeds", type=whole(0), nargs="+", default=[0], help=seeds_help)
    parser.add_argument("--num-images", type=whole(1), default=4, help="samples per toy, prompt and seed")
    parser.add_argument("--page", type=Path, help="also a PNG of some of the samples")
    parser.set_defaults(sampler="dpm-solver++", steps=15)
    study = Study(parser)
    args, ways = study.args, Ways(study)
    found = study.table("ip_adapter", rows(study, ways))
    print(
        "All four attributes right, by prompt, and how often the prompt is obeyed; then each attribute; in per cent\n"
    )
    by_prompt = {name: (".0%", of("all", mean_and_spread, prompt=name)) for name in PROMPTS}
    print(report(found, "way", by_prompt | {"prompt obeyed": (".0%", of("obeyed", mean_and_spread))}), end="\n\n")
    print(report(found, "way", {name: (".0%", of(name, mean_and_spread)) for name in TOY}))
    if ways.seconds:
        print(f"\nA word took {statistics.median(ways.seconds):.0f} s to learn.")
    if args.page:
        save_png(page(ways, TOYS[args.toys][:3]), args.page)


if __name__ == "__main__":
    run(main)
