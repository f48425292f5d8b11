"""Grading: a learner's function is compared with minti's on the same inputs.

A known mistake is a wrong function; a learner's function that gives the same numbers has made that mistake.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from minti.runs.messages import one_line, short_repr

Function = Callable[..., Any]
Probe = Callable[[Function], Any]  # calls a function on inputs of its own, the same every time; what comes of it


class Mistake(NamedTuple):
    """A wrong function that is often written, what is wrong with it, a question to ask oneself, and where to read."""

    name: str
    wrong: Function
    hint: str
    place: str


@dataclass(frozen=True)
class Task:
    """A function to write.

    Attributes:
        right: minti's own, with the signature that is asked for; its name is the task's.
        probe: what is compared of a function.
        place: in the notes, for an error that is not a known one.
    """

    right: Function
    probe: Probe
    place: str
    mistakes: tuple[Mistake, ...]

    @property
    def name(self) -> str:
        return self.right.__name__


@dataclass(frozen=True)
class Part:
    """A file of the exercise: the functions to write, and the image made with them, (mine) -> image.

    `mine` has every function of the exercise as an attribute: the learner's if it is right, otherwise minti's.
    """

    tasks: tuple[Task, ...]
    image: Callable[[Any], Image.Image]


class Verdict(NamedTuple):
    """right, mistake (a known one), wrong, unwritten, error (it cannot be judged), or late; and one line about it."""

    function: str
    state: str
    says: str


def judge(task: Task, function: Function, file: Path) -> Verdict:
    """The verdict on a learner's function: does it give what minti's gives, and if not, which mistake is it?"""
    asked, got = (list(inspect.signature(each).parameters) for each in (task.right, function))
    if asked != got:
        return Verdict(task.name, "error", f"takes ({', '.join(got)}); expected ({', '.join(asked)})")
    expected = probed(task, task.right)
    try:
        given = probed(task, function)
    except NotImplementedError:
        return Verdict(task.name, "unwritten", "not written yet")
    except (Exception, SystemExit) as error:
        why = f"stops with {type(error).__name__}: {one_line(error)}{line_of(error, file)}; read {task.place}"
        return Verdict(task.name, "error", why)
    if same(given, expected):
        return Verdict(task.name, "right", "right")
    for mistake in task.mistakes:
        if same(given, probed(task, mistake.wrong)):
            return Verdict(task.name, "mistake", f"{mistake.name}. {mistake.hint} ({mistake.place})")
    return Verdict(task.name, "wrong", f"{difference(given, expected)}; none of the usual mistakes, read {task.place}")


def probed(task: Task, function: Function) -> Any:
    """The result of a function's probe. Noise from torch's global generator is seeded, so it is the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return task.probe(function)


def same(a: Any, b: Any) -> bool:
    """Equal up to rounding: tensors, numbers, texts, and lists of them."""
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-5, equal_nan=True)
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return abs(a - b) <= 1e-5 + 1e-4 * abs(b) or (a != a and b != b)
    return type(a) is type(b) and isinstance(a, str) and a == b


def difference(given: Any, expected: Any) -> str:
    """How two results differ, in a few words."""
    if isinstance(given, (tuple, list)) and isinstance(expected, (tuple, list)):
        if len(given) != len(expected):
            return f"gives {len(given)} values, expected {len(expected)}"
        return next(difference(a, b) for a, b in zip(given, expected) if not same(a, b))
    if given is None:
        return "gives nothing: is there a return?"
    if not isinstance(given, Tensor) or not isinstance(expected, Tensor):
        got, asked = kind(given), kind(expected)
        if got == asked:
            return f"gives {short_repr(given)}, and another {asked.removeprefix('a ')} was expected"
        return f"gives {got}, expected {asked}" + (": `.item()`?" if got == "a tensor" and asked == "a number" else "")
    if given.shape != expected.shape:
        return f"gives shape {tuple(given.shape)}, expected {tuple(expected.shape)}"
    return f"is off by up to {(given.double() - expected.double()).abs().max().item():.3g}"


def kind(value: Any) -> str:
    """What a result is, in a learner's words."""
    kinds = {Tensor: "a tensor", (int, float): "a number", str: "a text", (tuple, list): "a list"}
    return next((name for types, name in kinds.items() if isinstance(value, types)), f"a {type(value).__name__}")


def line_of(error: BaseException, file: Path) -> str:
    """The line of the learner's file where an error came from."""
    number, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            number = trace.tb_lineno
        trace = trace.tb_next
    return f", in line {number}" if number else ""
