"""The tables and the plot of `examples/words.md`, from what `compare_words.py` has measured.

    python examples/toybox/words_tables.py                                  # from the CSV files beside this script
    python examples/toybox/words_tables.py --words words.csv --pairs word_pairs.csv --plot words.png  # of any folder

Means over the words, with standard errors over the toys: words of one toy share its difficulties.
"""

from study import Row, cell, markdown, mean_and_error
from support.command_line import run

import argparse
import csv
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
SHARES = ("alone", "in styles", "in company", "obeyed")
OWN = ("own background", "own place", "own size")
FIRST, AT = "default", "default, length "


def read(path: Path) -> list[dict[str, float | str]]:
    """The rows of a CSV file, with numbers as such."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{k: v if k == "way" else float(v) for k, v in row.items() if v != ""} for row in csv.DictReader(file)]


def by_toy(rows: Sequence[Row], name: str, key: Callable[[Row], object]) -> dict[object, float]:
    """A column's mean for each toy, or pair of toys."""
    found: dict[object, list[float]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row[name])
    return {toy: fmean(values) for toy, values in found.items()}


def difference(rows: Sequence[Row], base: Sequence[Row], name: str, key: Callable) -> tuple[float, float] | None:
    """Mean over the toys, and its standard error, of what a way's words have more than the base's of the same seeds."""
    seeds = {(key(row), row["seed"]) for row in rows}
    both = [row for row in base if (key(row), row["seed"]) in seeds]
    there = {(key(row), row["seed"]) for row in both}
    mine = by_toy([row for row in rows if (key(row), row["seed"]) in there], name, key)
    theirs = by_toy(both, name, key)
    return mean_and_error([mine[toy] - theirs[toy] for toy in mine]) if mine else None


def best_of(rows: Sequence[Row], starts: int) -> list[Row]:
    """For each toy and each choice of so many of its seeds, the word of the lowest validation loss."""
    found = []
    for toy in sorted({row["toy"] for row in rows}):
        words = [row for row in rows if row["toy"] == toy]
        for some in combinations(words, starts):
            best = min(some, key=lambda row: row["validation"])
            found.append(
                best | {"steps": sum(row["steps"] for row in some), "seconds": sum(r["seconds"] for r in some)}
            )
    return found


def in_tables(way: str) -> bool:
    """Whether a way is no other length than the vocabulary's: those are the plot's."""
    return not way.startswith(AT) or way == f"{AT}1"


def toy_of(row: Row) -> object:
    """The toy of a word."""
    return row["toy"]


def pair_of(row: Row) -> object:
    """The toys of a pair."""
    return row["a"], row["b"]


def tables(words: Sequence[Row], pairs: Sequence[Row]) -> tuple[str, str]:
    """The measures of every way, and what they are more than the first way's, in per cent."""
    words, pairs = ([row for row in rows if in_tables(row["way"])] for rows in (words, pairs))
    groups = {way: [row for row in words if row["way"] == way] for way in dict.fromkeys(row["way"] for row in words)}
    together = {way: [row for row in pairs if row["way"] == way] for way in dict.fromkeys(row["way"] for row in pairs)}
    derived = {way: best_of(groups[way], 3) for way in list(groups) if len({row["seed"] for row in groups[way]}) >= 3}
    groups |= {f"{way}, best of 3 starts": rows for way, rows in derived.items()}
    measured, more = [], []
    for way in [*groups, *(way for way in together if way not in groups)]:
        rows, both = groups.get(way, []), together.get(way, [])
        line: dict[str, object] = {"way": way, "words": len(rows) if "best of" not in way else ""}
        line |= {
            name: cell(mean_and_error(list(by_toy(rows, name, toy_of).values())), ".0%") for name in SHARES if rows
        }
        if both:
            line |= {"two words": cell(mean_and_error(list(by_toy(both, "both", pair_of).values())), ".0%")}
            line |= {"pairs": len(both)}
        if rows:
            line |= {"length": f"{fmean(row['length'] for row in rows):.1f}"}
            line |= {"steps": f"{fmean(row['steps'] for row in rows):.0f}"}
            line |= {"seconds": f"{fmean(row['seconds'] for row in rows):.0f}"}
        measured.append(line)
        if way != FIRST and "best of" not in way:
            apart = {name: difference(rows, groups[FIRST], name, toy_of) for name in SHARES if rows}
            apart |= {"two words": difference(both, together[FIRST], "both", pair_of)} if both else {}
            more.append({"way": way} | {name: cell(value, ".1%") for name, value in apart.items() if value})
    columns = dict.fromkeys(("way", "words", *SHARES, "two words", "pairs", "length", "steps", "seconds"), "")
    return markdown(measured, columns), markdown(more, dict.fromkeys(("way", *SHARES, "two words"), ""))


def copies(words: Sequence[Row]) -> str:
    """Of the words where it was asked: in how many images they copy the first of their images, and the loss on all."""
    asked = [row for row in words if OWN[0] in row]
    found = []
    for way in dict.fromkeys(row["way"] for row in asked):
        rows = [row for row in asked if row["way"] == way]
        means = {name: mean_and_error(list(by_toy(rows, name, toy_of).values())) for name in (*OWN, "validation")}
        line = {"way": way, "words": len(rows)} | {name: cell(means[name], ".0%") for name in OWN}
        found.append(line | {"loss on all five": cell(means["validation"], ".3f")})
    return markdown(found, dict.fromkeys(("way", "words", *OWN, "loss on all five"), ""))


def plot(words: Sequence[Row], pairs: Sequence[Row], seed: int = 0) -> plt.Figure:
    """Shares of right images over the length to which the default's words of a seed were rescaled after learning."""
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    ways = {way: float(way.removeprefix(AT)) for way in {row["way"] for row in words} if way.startswith(AT)}
    lengths = dict(sorted(ways.items(), key=lambda item: item[1]))
    columns = [(name, name, words, toy_of) for name in SHARES] + [("two words", "both", pairs, pair_of)]
    for label, name, rows, key in columns:
        at = [by_toy([row for row in rows if (row["way"], row["seed"]) == (way, seed)], name, key) for way in lengths]
        means, errors = zip(*(mean_and_error([100 * value for value in found.values()]) for found in at))
        axes.errorbar(list(lengths.values()), means, errors, fmt="o-", markersize=4, capsize=2, label=label)
    own = [row["length"] for row in words if (row["way"], row["seed"]) == (FIRST, seed)]
    axes.axvspan(min(own), max(own), color="0.9", zorder=0, label="as learned")
    axes.set(xscale="log", xlabel="length of the vector, in mean lengths of the vocabulary's", ylabel="right, per cent")
    axes.set_xticks(list(lengths.values()), [f"{x:g}" for x in lengths.values()], minor=False)
    axes.minorticks_off()
    axes.set_ylim(35, 103)
    axes.legend(fontsize=8, loc="lower left", ncols=2)
    return figure


def main() -> None:
    """Prints both."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--words", type=Path, default=HERE / "words.csv", help="a line for each word")
    parser.add_argument("--pairs", type=Path, default=HERE / "word_pairs.csv", help="a line for each pair of words")
    parser.add_argument("--plot", type=Path, help="a PNG: the length of the vectors against what is right")
    args = parser.parse_args()
    if args.plot:
        plot(read(args.words), read(args.pairs)).savefig(args.plot, dpi=120)
    words = read(args.words)
    measured, more = tables(words, read(args.pairs))
    print(f"{measured}\n\nMore than {FIRST}, in points, of the same toys and seeds:\n\n{more}")
    print(f"\nImages of a word alone that have what the one image of its training has:\n\n{copies(words)}")


if __name__ == "__main__":
    run(main)
