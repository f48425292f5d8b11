"""Two learned words in one image: combinations of prompts (composable diffusion), regions and shorter embeddings.

    python examples/toybox/evaluate_toybox.py --only inversion --toys all  # learns the words
    python examples/toybox/compare_pairs.py

Prints in per cent how often both toys are right in everything, how much more often than with one prompt, pair by pair,
and how often a toy is right, with standard errors over the pairs; writes pairs.csv.
"""

from study import Row, Study, mean_and_error, options, report
from support.command_line import run, whole

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import fmean

import torch

import minti
import world
from measure import tally
from minti.embeddings import read_embeddings
from minti.guidance.conditions import Conditions
from minti.images import to_pil

PLAIN, FIRST, SECOND = "a photo of a {} next to a {}", "a photo of a {} next to a toy", "a photo of a toy next to a {1}"


@dataclass(frozen=True)
class Way:
    """A prompt, its weight as a part of the guidance scale, and further prompts of the same weight.

    `halves`: they count in the left and the right half of the image, and nowhere else.
    """

    prompt: str = PLAIN
    weight: float = 1
    further: tuple[str, ...] = ()
    halves: bool = False
    words: str = "learned"  # or "short", or "described" in the world's own words

    def options(
        self, names: Sequence[tuple[str, str]], scale: float, model: minti.StableDiffusion, some: slice
    ) -> dict:
        """Guidance scale and further prompts of `minti.sample` for a batch of pairs."""
        _, _, height, width = model.latents_shape(1)
        left = (torch.arange(width) < width / 2).float().expand(1, 1, height, width)
        masks, weight = [left, 1 - left] if self.halves else [None, None], self.weight * scale
        extra = [
            ([text.format(*pair) for pair in names[some]], weight, mask) for text, mask in zip(self.further, masks)
        ]
        return {"guidance_scale": weight, "cfg": Conditions(model, extra)}


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


def calls(study: Study) -> dict[tuple[Path, int, str], str]:
    """The words for toy i of folder f, {(f, i, way of calling)}; learned and shortened ones are added to the model.

    A shortened embedding vector ends half way between its own length and the initializer's (after arXiv 2506.22685,
    which rotates it as well):  e' = e (|e| + |e_0|) / (2 |e|)
    """
    args, model, names = study.args, study.model, {}
    start = model.text_encoder.get_input_embeddings().weight[model.tokenizer(args.initializer).input_ids[1]].norm()
    for number, folder in enumerate(args.words):
        for i in args.toys:
            rows = next(iter(read_embeddings(folder / f"toy-{i}.safetensors").values()))  # k d
            lengths = rows.norm(dim=1, keepdim=True)  # k 1
            for form, values in {"learned": rows, "short": rows * (lengths + start) / (2 * lengths)}.items():
                names[folder, i, form] = f"<{form}-{number}-{i}>"
                model.add_word(names[folder, i, form], values)
            names[folder, i, "described"] = world.HELD_OUT[i].looks
    return names


def rows(study: Study, names: dict) -> Iterator[list[Row]]:
    """Each way's images of every folder's pairs; the noise is another in every folder, and the same for all ways."""
    args = study.args
    jobs = [(f, *pair) for f in args.words for pair in combinations(args.toys, 2) for _ in range(args.count)]
    for name in study.bar(args.ways, "ways"):
        way, found = WAYS[name], []
        called = [tuple(names[f, i, way.words] for i in pair) for f, *pair in jobs]
        each = partial(way.options, called, args.guidance_scale, study.model)
        pixels = study.sample([way.prompt.format(*pair) for pair in called], each=each)
        for (f, i, j), image in zip(jobs, to_pil(pixels)):
            _, one, other = tally(study.judge, [image], PLAIN, [world.HELD_OUT[i], world.HELD_OUT[j]])
            both = {"both": one["all"] and other["all"], "one": one["all"], "other": other["all"]}
            found.append({"words": str(f), "first": i, "second": j, "way": name} | both)
        yield found


def of_pairs(*names: str, less: Sequence[Row] = ()) -> Callable[[list[Row]], tuple[float, float]]:
    """Mean and standard error over the pairs of toys, each of which is the mean over its folders and images; `less`:
    rows whose values are subtracted, pair by pair."""

    def by_pair(rows: Sequence[Row]) -> dict[tuple, float]:
        found: dict[tuple, list[float]] = {}
        for row in rows:
            found.setdefault((row["first"], row["second"]), []).extend(row[name] for name in names)
        return {pair: fmean(values) for pair, values in found.items()}

    def statistic(rows: list[Row]) -> tuple[float, float] | None:
        base = by_pair(less)
        values = [value - base.get(pair, 0) for pair, value in by_pair(rows).items()]
        return None if rows[0] in less else mean_and_error(values)

    return statistic


def main() -> None:
    """All pairs of the words of each folder, all ways."""
    parser = options(__doc__, "outputs/pairs", WAYS, count=4, steps=20, batch_size=32)
    words_help = "folders of toy-0.safetensors ..., one for each seed of learning"
    parser.add_argument("--words", type=Path, nargs="+", default=[Path("outputs/evaluation")], help=words_help)
    parser.add_argument(
        "--initializer", default="toy", help="their initializer token, towards which they are shortened"
    )
    parser.add_argument("--toys", type=whole(0, 11), nargs="+", default=list(range(12)), help="which of them")
    parser.set_defaults(sampler="dpm-solver++")
    study = Study(parser)
    found, plain = study.table("pairs", rows(study, calls(study))), study.args.ways[0]
    more = of_pairs("both", less=[row for row in found if row["way"] == plain])
    columns = {"both toys right": of_pairs("both"), f"more than {plain}": more, "a toy right": of_pairs("one", "other")}
    print(report(found, "way", {name: (".1%", statistic) for name, statistic in columns.items()}))


if __name__ == "__main__":
    run(main)
