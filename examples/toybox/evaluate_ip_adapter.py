"""One picture as a prompt, beside a word learned from five: the judge's rates for the toys that training never shows.

    python examples/toybox/evaluate_ip_adapter.py

Both ways draw from the same prompts, "a toy" in the one, the word in the other, and from the same noises. Words are
kept in --output, and learned only where they are missing. With --page also one picture of some of the drawings.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from support.command_line import arguments, finite, generators, load, make_output, run, whole
from support.studies import write_table

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from PIL import Image
from torch import Tensor
from tqdm import tqdm

import minti
import world
from attributes import tally
from draw_concepts import concept_name
from held_out import TOYS, pixels_of, wrappers_to_train
from measure import TOY, load_judge
from minti.adapters.ip_adapter import load_ip_adapter
from minti.evaluation.grids import grid
from minti.formats.image_files import save_png
from minti.images import to_pil
from toy_clip import load_toy_clip

WORD = "<concept>"
FILE = Path("ip_adapter") / "ip_adapter.safetensors"  # in the toybox's folder
PROMPTS = {
    "a photo": "a photo of a {}",
    "a cartoon": "a cartoon of a {}",
    "pixel art": "a pixel art picture of a {}",
    "at a place": "a photo of a {} on the right on a sand background",
}
Draw = Callable[[str, str, int], list[Image.Image]]  # template, what stands for the toy, seed


class Ways:
    """Each draws a toy into a template: {name: (toy, seed) -> the model that draws and what stands for the toy}."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.model = args, load(args)
        path = args.ip_adapter or Path(args.model) / FILE
        self.adapter = load_ip_adapter(self.model, path)
        self.adapter.scale, self.seen = args.ip_scale, None
        self.clip = load_toy_clip(self.model, args.model)
        self.seconds: list[float] = []  # that the words took
        self.all = {"no picture": self.nothing, "one picture": self.picture, "a word from five": self.word,
                    "described": self.described}  # fmt: skip

    def draw(self, model: minti.StableDiffusion, prompt: str, seed: int) -> list[Image.Image]:
        """As many as asked for."""
        count, prompts, negative = self.args.num_images, [prompt] * self.args.num_images, ""
        if self.seen is not None:
            prompts = self.adapter.prompted(model.encode_prompt(prompts), self.seen)
            negative = self.adapter.prompted(model.encode_prompt(negative))
        return minti.sample(model, prompts, negative, generator=generators(1000 * seed, count), sampler="dpm-solver++",
                            num_inference_steps=15, guidance_scale=self.args.guidance_scale)  # fmt: skip

    def nothing(self, toy: world.Toy, seed: int) -> tuple:
        return self.model, "toy", nullcontext()

    def described(self, toy: world.Toy, seed: int) -> tuple:
        return self.model, f"{toy.main} {toy.shape} with a {toy.second} {toy.pattern}", nullcontext()

    def picture(self, toy: world.Toy, seed: int) -> tuple:
        """Of the five pictures that the word is learned from another for every seed."""
        return self.model, "toy", self.showing(self.clip.images(to_pil(pixels_of(toy)[[seed % 5]])))

    @contextmanager
    def showing(self, seen: Tensor) -> Iterator[None]:
        """A context in which prompts have a picture."""
        with self.adapter.attached(self.model):
            self.seen = seen
            yield
        self.seen = None

    def word(self, toy: world.Toy, seed: int) -> tuple:
        """Learned with minti's defaults, unless its file is there."""
        path = self.args.output / f"{concept_name(toy)}-{seed}.safetensors"
        model, begin = load(self.args), time.perf_counter()
        if path.exists():
            minti.load_embeddings(model, path)
            return model, WORD, nullcontext()
        (wrapper,) = wrappers_to_train(model, WORD, pixels_of(toy), seed=seed)
        for _ in minti.textual_inversion(wrapper, pixels_of(toy)):
            pass
        self.seconds.append(time.perf_counter() - begin)
        minti.save_embeddings(wrapper, path)
        return model, WORD, nullcontext()


def shown(rates: list[float]) -> str:
    """In per cent, the mean and how far toys and seeds spread around it."""
    return f"{100 * statistics.mean(rates):.0f} ± {100 * statistics.pstdev(rates):.0f}"


def report(rows: list[dict], ways: list[str]) -> str:
    """Two tables: how often all four attributes are right, by prompt; and each attribute, over all prompts."""
    lines = ["| all four right, % | " + " | ".join(PROMPTS) + " | prompt obeyed |", "|---" * (len(PROMPTS) + 2) + "|"]
    for way in ways:
        mine = [row for row in rows if row["way"] == way]
        cells = [shown([row["all"] for row in mine if row["prompt"] == name]) for name in PROMPTS]
        lines.append(f"| {way} | " + " | ".join([*cells, shown([row["obeyed"] for row in mine])]) + " |")
    lines += ["", "| right, % | " + " | ".join(TOY) + " |", "|---" * (len(TOY) + 1) + "|"]
    for way in ways:
        cells = [shown([row[name] for row in rows if row["way"] == way]) for name in TOY]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(ways: Ways, toys: list[world.Toy]) -> Image.Image:
    """A row for every toy: the picture that is the prompt, three drawings of the adapter, three of the word."""
    pictures = []
    for toy in toys:
        pictures += to_pil(pixels_of(toy)[:1])
        for way in (ways.picture, ways.word):
            for template in list(PROMPTS.values())[1:]:
                model, name, inside = way(toy, 0)
                with inside:
                    pictures.append(ways.draw(model, template.format(name), 0)[0])
    return grid([picture.resize((128, 128), Image.Resampling.NEAREST) for picture in pictures], columns=7)


def main() -> None:
    """All ways for all toys and seeds; two tables, and every row in ip_adapter.csv."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/evaluate-ip-adapter")
    parser.add_argument("--ip-adapter", type=Path, help="a file; default: the model's own")
    parser.add_argument("--ip-scale", type=finite, default=1.0, help="of what the picture says")
    parser.add_argument("--toys", choices=TOYS, default="test", help="which held-out toys")
    parser.add_argument(
        "--seeds", type=whole(0), nargs="+", default=[0], help="of learning, of drawing, and which picture"
    )
    parser.add_argument("--num-images", type=whole(1), default=4, help="drawings per toy, prompt and seed")
    parser.add_argument("--ways", nargs="+", default=["no picture", "one picture", "a word from five", "described"])
    parser.add_argument("--page", type=Path, help="also draw some of them as a PNG")
    args = parser.parse_args()
    make_output(args.output)
    ways, judge, rows = Ways(args), load_judge(args.model), []
    if unknown := set(args.ways) - set(ways.all):
        parser.error(f"no such way: {', '.join(unknown)}; there are {', '.join(ways.all)}")
    jobs = [(toy, seed, way) for toy in TOYS[args.toys] for seed in args.seeds for way in args.ways]
    for toy, seed, way in tqdm(jobs, disable=True if args.quiet else None):
        model, name, inside = ways.all[way](toy, seed)
        with inside:
            for kind, template in PROMPTS.items():
                drawn = ways.draw(model, template.format(name), seed)
                asked, kept = tally(judge, drawn, template.format(name), [toy])
                rates = {key: count / len(drawn) for key, count in kept.items()}
                row = {"toy": concept_name(toy), "seed": seed, "way": way, "prompt": kind}
                rows.append(row | rates | {"obeyed": asked["all"] / len(drawn)})
        write_table(args.output / "ip_adapter.csv", rows)
    print(report(rows, args.ways))
    if ways.seconds:
        print(f"\nA word took {statistics.median(ways.seconds):.0f} s to learn.")
    if args.page:
        save_png(page(ways, TOYS[args.toys][:3]), args.page)


if __name__ == "__main__":
    run(main)
