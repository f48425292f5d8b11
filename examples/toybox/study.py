"""The study runner: ways x prompts x seeds -> images -> classifier -> a table, a CSV file and a page of images.

Every script beside it that measures something is a study: a dictionary of ways, and what it measures of their images.
The classifier, called the judge (`networks.Judge`), was trained on the world's own ground truth.

    def rows(study):
        for way in study.bar(study.args.ways):
            pixels = study.sample(prompts, **WAYS[way])
            study.show("x", way, pixels[:8])
            yield [{"way": way, "right": right(verdict)} for verdict in verdicts(study.judge, pixels)]

    study = Study(options(__doc__, "outputs/x", ways=WAYS, count=32, steps=20))
    print(report(study.table("x", rows(study)), "way", {"right": (".0%", of("right", mean_and_error))}))
"""

import examples_on_path
from support.command_line import arguments, generators, load, make_output, make_writable, whole
from support.learning import put_aside
from support.pages import page
from support.studies import write_table

import argparse
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import minti
from measure import load_judge
from minti.evaluation.clip_scores import Clip
from minti.formats.image_files import save_png
from minti.images import to_pil
from networks import Judge
from toy_clip import load_toy_clip

Row = Mapping[str, Any]  # one line of a table: {column: value}
Columns = Mapping[str, str]  # {name: format, as of `cell`}
HELP = {"count": "images of each way", "steps": "denoising steps", "batch_size": "images sampled at a time"}


def options(
    doc: str, output: str, ways: Sequence[str] | Mapping[str, Any] = (), **numbers: int | tuple
) -> argparse.ArgumentParser:
    """The parser of a study: the options of all scripts, `--ways`, and whole numbers with their defaults.

    `doc`: the script's docstring, whose first paragraph is the description. `numbers`: default, or (default, least
    value, help), of `--count`, `--steps`, `--batch-size`.
    """
    parser = arguments(doc.split("\n\n")[0], output)
    for name, number in numbers.items():
        default, least, text = (*number, HELP[name])[:3] if isinstance(number, tuple) else (number, 1, HELP[name])
        parser.add_argument(f"--{name.replace('_', '-')}", type=whole(least), default=default, help=text)
    if ways:
        how = {"choices": ways, "metavar": "WAY", "default": list(ways), "help": f"of: {', '.join(ways)}"}
        parser.add_argument("--ways", nargs="+", **how)
    return parser


def sample(
    model: minti.StableDiffusion,
    prompts: Sequence[str],
    seed: int = 0,
    batch_size: int = 16,
    each: Callable[[slice], dict[str, Any]] = lambda some: {},
    quiet: bool = True,
    **options: Any,
) -> Tensor:
    """An image for each prompt, (n, 3, h, w) in about [-1, 1]; image i starts from the noise of seed + i.

    `each`: further options of one batch, from the indices of its prompts. `options`: of `minti.sample`.
    """
    parts = []
    for start in tqdm(range(0, len(prompts), batch_size), "batches", disable=quiet or None, leave=False):
        some = slice(start, start + batch_size)
        given = {"output": "pixels", "generator": generators(seed + start, len(prompts[some]))} | options
        parts.append(minti.sample(model, prompts[some], **(given | each(some))))
    return torch.cat(parts)


class Study:
    """What a study works with: its options, a frozen model, the judge and the toybox's CLIP, and its output folder,
    which with `shared` several processes may write to."""

    def __init__(self, parser: argparse.ArgumentParser, shared: bool = False):
        self.args = parser.parse_args()
        self.folder: Path = self.args.output
        self.pages: dict[str, list[tuple[str, list[Image.Image]]]] = {}
        (make_writable if shared else make_output)(self.folder)
        self.model = self.fresh()
        self.model.freeze()

    def fresh(self) -> minti.StableDiffusion:
        """The model once more, to train."""
        return load(self.args)

    @cached_property
    def judge(self) -> Judge:
        return load_judge(self.args.model)

    @cached_property
    def clip(self) -> Clip:
        return load_toy_clip(self.model, self.args.model)

    def sample(self, prompts: Sequence[str], model: minti.StableDiffusion | None = None, **options: Any) -> Tensor:
        """`sample` with the steps, sampler, guidance scale, batch size and seed of the command line."""
        args = self.args
        given = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale, "seed": args.seed}
        given |= {name: getattr(args, name) for name in ("sampler", "batch_size") if name in args}
        return sample(model or self.model, prompts, **({"quiet": args.quiet} | given | options))

    def bar(self, jobs: Iterable[Any], name: str | None = None, **options: Any) -> tqdm:
        """A progress bar, unless `--quiet`."""
        return tqdm(jobs, name, disable=True if self.args.quiet else None, **options)

    def table(self, name: str, rows: Iterable[Row | list[Row]], columns: Columns | None = None) -> list[Row]:
        """All rows, which are kept in the file NAME.csv as they come; with `columns` they are printed, too. No
        columns, {}: those of the first row."""
        kept: list[Row] = []
        for new in rows:
            new = new if isinstance(new, list) else [new]
            if not kept:
                put_aside([self.folder / f"{name}.csv"])
            if columns is not None:
                if not kept:
                    columns = columns or dict.fromkeys(new[0], "")
                    print(markdown([], columns))
                print(*(line(row, columns) for row in new), sep="\n", flush=True)
            kept += new
            write_table(self.folder / f"{name}.csv", kept)
        return kept

    def show(
        self, name: str, label: str, images: Tensor | list[Image.Image], headings: Sequence[str] = (), size: int = 64
    ) -> None:
        """Adds a row of images to the page NAME.png of the output folder; `headings`: above its columns."""
        rows = self.pages.setdefault(name, [])
        rows.append((label, to_pil(images) if isinstance(images, Tensor) else images))
        save_png(page(rows, size, headings), self.folder / f"{name}.png")


def line(row: Row, columns: Columns) -> str:
    """A row as Markdown."""
    return f"| {' | '.join(cell(row.get(name), form) for name, form in columns.items())} |"


def markdown(rows: Sequence[Row], columns: Columns) -> str:
    """A table of rows as Markdown."""
    return "\n".join([f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(line(row, columns) for row in rows)])


def accuracies(found: Mapping[str, Row], columns: Sequence[str]) -> str:
    """A Markdown table in per cent of {name of a row: its shares}."""
    rows = [{"": name} | dict(shares) for name, shares in found.items()]
    return markdown(rows, {"": ""} | dict.fromkeys(columns, ".1%"))


def cell(value: Any, form: str = "") -> str:
    """A value by a format: ".1f", or ".0%" for per cent without the sign, or by itself; a pair is "mean ± error"."""
    if isinstance(value, tuple):
        return " ± ".join(cell(part, form) for part in value)
    if value is None:
        return ""
    if not form:
        return f"{value:.3g}" if isinstance(value, float) else str(value)
    return format(value, form).removesuffix("%")


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error; of a single value no error is known."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan
    return statistics.mean(values), error


def column(rows: Iterable[Row], name: str, **equal: Any) -> list[float]:
    """A column of the rows with these values."""
    return [row[name] for row in rows if all(row[key] == value for key, value in equal.items())]


def of(name: str, statistic: Callable[[list[Any]], Any] = statistics.fmean, **equal: Any) -> Callable[[list[Row]], Any]:
    """For `report`: a statistic of a column, where other columns have these values."""
    return lambda rows: statistic(column(rows, name, **equal))


def report(rows: Iterable[Row], by: str, columns: Mapping[str, tuple[str, Callable[[list[Row]], Any]]]) -> str:
    """A Markdown table with a line for each value of the column `by`.
    `columns`: {heading: (format as of `cell`, a function of the rows with that value)}."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[by], []).append(row)
    found = [{by: key} | {name: of(group) for name, (_, of) in columns.items()} for key, group in groups.items()]
    return markdown(found, {by: ""} | {name: form for name, (form, _) in columns.items()})
