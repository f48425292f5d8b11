"""Two learned words in one picture: ways to say them, to place them and to shorten them, seen by the judge.

    python examples/toybox/evaluate_toybox.py --only inversion --toys all  # learns the words
    python examples/toybox/compare_pairs.py

Prints in per cent how often both toys are right in everything, how much more often than with one prompt, pair by pair,
and how often a toy is right, with standard errors over the pairs; writes pairs.csv.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from support.command_line import arguments, generators, load, make_output, run, whole
from support.studies import write_table

from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from PIL import Image
from tqdm import tqdm

import minti
import world
from attributes import tally
from measure import load_judge
from minti.embeddings import read_embeddings

PLAIN, FIRST, SECOND = "a photo of a {} next to a {}", "a photo of a {} next to a toy", "a photo of a toy next to a {1}"


@dataclass(frozen=True)
class Way:
    """A prompt, its weight as a part of the guidance scale, and further prompts of the same weight.

    `halves`: they count in the left and the right half of the picture, and nowhere else.
    """

    prompt: str = PLAIN
    weight: float = 1
    further: tuple[str, ...] = ()
    halves: bool = False
    words: str = "learned"  # or "short", or "described" in the world's own words

    def options(self, names: Sequence[tuple[str, str]], scale: float, model: minti.StableDiffusion) -> dict:
        """Arguments of `minti.sample` for a batch of pairs."""
        _, _, height, width = model.latents_shape(1)
        left = (torch.arange(width) < width / 2).float().expand(1, 1, height, width)
        masks = [left, 1 - left] if self.halves else [None, None]
        first, *further = ([prompt.format(*pair) for pair in names] for prompt in (self.prompt, *self.further))
        weight = self.weight * scale
        also = [(prompts, weight, mask) for prompts, mask in zip(further, masks)]
        return {"prompts": first, "guidance_scale": weight, "also": also}


WAYS = {
    "one prompt": Way(),
    "one prompt, half as strong again": Way(weight=1.5),
    "two prompts at half the scale": Way(FIRST, 0.5, (SECOND,)),
    "two prompts at 0.7 of the scale": Way(FIRST, 0.7, (SECOND,)),
    "two prompts": Way(FIRST, 1, (SECOND,)),
    "all three at half the scale": Way(PLAIN, 0.5, (FIRST, SECOND)),
    "two plain descriptions": Way(words="described"),
    "shorter words": Way(words="short"),
    "each in its half": Way(PLAIN, 0.5, (FIRST, SECOND), halves=True),
    "shorter, each in its half": Way(PLAIN, 0.5, (FIRST, SECOND), halves=True, words="short"),
}


def calls(args: Namespace, model: minti.StableDiffusion) -> dict[tuple[str, int, str], str]:
    """What toy i of folder f is called, {(f, i, way of calling)}; the learned and the shortened words are added to the
    model.

    A shortened row ends half way between its own length and the initializer's (after arXiv 2506.22685, which rotates it
    as well):  e' = e (|e| + |e_0|) / (2 |e|)
    """
    names = {}
    start = model.text_encoder.get_input_embeddings().weight[model.tokenizer(args.initializer).input_ids[1]].norm()
    for folder in args.words:
        for i in args.toys:
            rows = next(iter(read_embeddings(folder / f"toy-{i}.safetensors").values()))  # k d
            lengths = rows.norm(dim=1, keepdim=True)  # k 1
            toy, number = world.HELD_OUT[i], args.words.index(folder)
            forms = {"learned": rows, "short": rows * (lengths + start) / (2 * lengths)}
            for form, values in forms.items():
                names[folder, i, form] = f"<{form}-{number}-{i}>"
                model.add_word(names[folder, i, form], values)
            names[folder, i, "described"] = f"{toy.main} {toy.shape} with a {toy.second} {toy.pattern}"
    return names


def drawn(args: Namespace, model: minti.StableDiffusion, names: dict, way: Way) -> Iterator[tuple[tuple, Image.Image]]:
    """((folder, toy, toy, number), picture) of every folder's pairs; the noise is another in every folder, and the same
    for all ways."""
    pairs = list(combinations(args.toys, 2))
    jobs = [(f, *pair, k) for f in args.words for pair in pairs for k in range(args.count)]
    for start in range(0, len(jobs), args.batch_size):
        batch = jobs[start : start + args.batch_size]
        called = [tuple(names[f, i, way.words] for i in pair) for f, *pair, _ in batch]
        options = way.options(called, args.guidance_scale, model)
        noise = [generators(args.seed + start + at, 1)[0] for at in range(len(batch))]
        shared = {"num_inference_steps": args.steps, "sampler": args.sampler, "generator": noise}
        yield from zip(batch, minti.sample(model, **options, **shared))


def with_error(values: Sequence[float]) -> str:
    """Mean and standard error, in per cent."""
    values = 100 * torch.tensor(values)
    return f"{values.mean():.1f} ± {values.std() / len(values) ** 0.5:.1f}"


def report(rows: Sequence[dict], ways: Sequence[str]) -> None:
    """A Markdown table; every pair of toys is one value, the mean over its folders and drawings."""

    def by_pair(way: str, *columns: str) -> list[float]:
        found: dict[tuple, list[float]] = {}
        for row in rows:
            if row["way"] == way:
                found.setdefault((row["first"], row["second"]), []).extend(row[column] for column in columns)
        return [sum(values) / len(values) for values in found.values()]

    first = by_pair(ways[0], "both")
    print(f"| way | both toys right | more than {ways[0]} | a toy right |\n|---|---|---|---|")
    for way in ways:
        both = by_pair(way, "both")
        more = with_error([b - a for a, b in zip(first, both)]) if way != ways[0] else ""
        print(f"| {way} | {with_error(both)} | {more} | {with_error(by_pair(way, 'one', 'other'))} |")


def main() -> None:
    """All pairs of the words of each folder, all ways."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/pairs")
    words_help = "folders of toy-0.safetensors ..., one for each seed of learning"
    parser.add_argument("--words", type=Path, nargs="+", default=[Path("outputs/evaluation")], help=words_help)
    parser.add_argument("--initializer", default="toy", help="the word that they began as, towards which they are cut")
    parser.add_argument("--toys", type=int, nargs="+", default=list(range(12)), help="which of them")
    parser.add_argument("--ways", nargs="+", choices=WAYS, metavar="WAY", default=list(WAYS), help=", ".join(WAYS))
    parser.add_argument("--count", type=whole(1), default=4, help="pictures of each pair")
    parser.add_argument("--steps", type=whole(1), default=20, help="denoising steps")
    parser.set_defaults(sampler="dpm-solver++")
    parser.add_argument("--batch-size", type=whole(1), default=32, help="pictures drawn at a time")
    args = parser.parse_args()
    folder, model = make_output(args.output), load(args)
    judge, names, rows = load_judge(args.model), calls(args, model), []
    for way in tqdm(args.ways, "ways", disable=True if args.quiet else None):
        for (words, i, j, _), picture in drawn(args, model, names, WAYS[way]):
            one, other = tally(judge, [picture], PLAIN, [world.HELD_OUT[i], world.HELD_OUT[j]])[1:]
            seen = {"both": one["all"] and other["all"], "one": one["all"], "other": other["all"]}
            rows.append({"words": str(words), "first": i, "second": j, "way": way} | seen)
        write_table(folder / "pairs.csv", rows)
    report(rows, args.ways)


if __name__ == "__main__":
    run(main)
