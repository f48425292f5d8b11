"""Two learned words in one picture: as one prompt, and as two prompts whose scores are added, seen by the judge.

    python examples/toybox/evaluate_toybox.py --only inversion --toys all  # learns the words
    python examples/toybox/compare_pairs.py

Prints in per cent how often both toys are right in everything, and each of them; writes pairs.csv.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from support.command_line import arguments, load, make_output, run, whole
from support.drawing import Artist
from support.studies import write_table

from itertools import combinations

from tqdm import tqdm

import minti
import world
from attributes import tally
from measure import load_judge

PLAIN, FIRST, SECOND = "a photo of a {} next to a {}", "a photo of a {} next to a toy", "a photo of a toy next to a {}"


def ways(a: str, b: str, scale: float) -> dict[str, tuple[str, dict]]:
    """{way: (prompt, options of `minti.sample`)}."""
    plain, first, second = PLAIN.format(a, b), FIRST.format(a), SECOND.format(b)
    composed = {
        f"two prompts, {weight:g} each": (first, {"guidance_scale": weight, "also": [(second, weight)]})
        for weight in (0.5 * scale, 0.7 * scale, scale)
    }
    half = 0.5 * scale
    all_three = {"guidance_scale": half, "also": [(first, half), (second, half)]}
    as_strong = {f"one prompt, {3 * half:g}": (plain, {"guidance_scale": 3 * half})}
    return (
        {f"one prompt, {scale:g}": (plain, {})}
        | as_strong
        | composed
        | {f"all three, {half:g} each": (plain, all_three)}
    )


def main() -> None:
    """All pairs of the words of a folder, all ways."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/pairs")
    parser.add_argument(
        "--words", type=Path, default=Path("outputs/evaluation"), help="folder of toy-0.safetensors ..."
    )
    parser.add_argument("--toys", type=int, nargs="+", default=list(range(12)), help="which of them")
    parser.add_argument("--count", type=whole(1), default=4, help="pictures of each pair")
    parser.add_argument("--steps", type=whole(1), default=20, help="denoising steps")
    parser.set_defaults(sampler="dpm-solver++", batch_size=16)
    args = parser.parse_args()
    folder, model = make_output(args.output), load(args)
    judge, artist, rows = load_judge(args.model), Artist(args, model), []
    names = {
        minti.load_embeddings(model, args.words / f"toy-{i}.safetensors", f"<toy-{i}>")[0]: world.HELD_OUT[i]
        for i in args.toys
    }
    for a, b in tqdm(list(combinations(names, 2)), "pairs", disable=artist.quiet):
        for way, (prompt, options) in ways(a, b, args.guidance_scale).items():
            pictures, toys = artist.draw([prompt], args.count, **options), [names[a], names[b]]
            each = [tally(judge, [picture], PLAIN.format(a, b), toys)[1:] for picture in pictures]
            both = sum(first["all"] and second["all"] for first, second in each)
            one, other = (sum(kept[k]["all"] for kept in each) for k in (0, 1))
            rows.append({"first": a, "second": b, "way": way, "both": both, "one": one, "other": other})
    write_table(folder / "pairs.csv", rows)
    print("| way | both toys right | a toy right |\n|---|---|---|")
    for way in dict.fromkeys(row["way"] for row in rows):
        chosen = [row for row in rows if row["way"] == way]
        total = args.count * len(chosen)
        both = 100 * sum(row["both"] for row in chosen) / total
        each = 100 * sum(row["one"] + row["other"] for row in chosen) / (2 * total)
        print(f"| {way} | {both:.0f} | {each:.0f} |")


if __name__ == "__main__":
    run(main)
