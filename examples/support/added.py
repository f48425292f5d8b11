"""What is added to a model while it draws: the options that say so, and how it goes inside."""

from __future__ import annotations

from support.command_line import finite

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import minti
from minti.machine import processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A group of options of their own."""
    group = parser.add_argument_group("what is added to the model")
    lora_help = "a LoRA, and how strongly it acts, 1 if you say nothing; may be repeated"
    group.add_argument("--lora", type=weighted, action="append", default=[], metavar="FILE[=WEIGHT]", help=lora_help)


def weighted(text: str) -> tuple[Path, float]:
    """The type of an option that takes a file and its weight."""
    if "=" not in text or Path(text).exists():
        return Path(text), 1.0
    path, weight = text.rsplit("=", 1)
    return Path(path), finite(weight)


@contextmanager
def added(args: argparse.Namespace, model: minti.StableDiffusion) -> Iterator[None]:
    """A context in which the model has all that the command line adds.

    Raises ValueError: one of the files does not fit it, or is given twice.
    """
    files = [path.resolve() for path, _ in args.lora]
    with ExitStack() as stack:
        for path, weight in args.lora:
            if files.count(path.resolve()) > 1:
                raise ValueError(f"--lora {path} is given {files.count(path.resolve())} times; say once how strongly")
            lora = minti.load_lora(model, path, weight)
            stack.enter_context(lora.inside(model))
            if processes.rank() == 0:
                print(f"{path}: a LoRA of {len(lora.pairs)} layers, weight {weight:g}")
        yield
