"""Mistakes as a table: what is wrong, how it is written, and a question.

    the betas multiplied
        torch.cumprod(betas, 0)
        ? A step adds the variance beta; what fraction of the variance does it keep?
        @ `002` 4.1

Several lines of code make the same mistake. What is before a `;` is done first of all, and the expression behind it is
what the wrong function returns. The line with `@`, where to read, may be left out.
"""

from __future__ import annotations

import inspect
from textwrap import dedent

import torch
import torch.nn.functional as F

from exercise.grader.part import Mistake
from exercise.grader.seen import Function


def mistakes(signature: str, given: str, text: str, by: tuple[str, ...] = ()) -> tuple[Mistake, ...]:
    """The mistakes of a function with these arguments; `given` is code that all wrong functions begin with."""
    found = []
    for block in inspect.cleandoc(text).split("\n\n"):
        name, *lines = block.split("\n")
        marked = {mark: [line.strip()[2:] for line in lines if line.strip()[0] == mark] for mark in "?@"}
        code = [line.strip() for line in lines if line.strip()[0] not in marked]
        wrong = tuple(function(signature, given, line) for line in code)
        found.append(Mistake(name, wrong, " ".join(marked["?"]), "".join(marked["@"]), by))
    return tuple(found)


def function(signature: str, given: str, line: str) -> Function:
    *first, last = line.split("; ")
    body = [*first, *filter(None, dedent(given).strip("\n").split("\n")), f"return {last}"]
    scope = {"torch": torch, "F": F}
    exec(f"def wrong({signature}):\n" + "\n".join(f"    {each}" for each in body), scope)
    return scope["wrong"]
