"""Grading: a learner's function is compared with minti's on the same inputs.

A known mistake is a wrong function; a learner's function of which the same is seen has made that mistake.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from exercise.grader.compare import difference, same
from exercise.grader.seen import AGAIN, CHANGED, RETURNED, Function, Probe, Seen
from minti.runs.messages import one_line


class Mistake(NamedTuple):
    """A wrong function that is often written, what is wrong with it, a question to ask oneself, and where to read.

    Attributes:
        wrong: it, or several that make the same mistake.
        place: in the notes; the task's where it is empty.
        by: what alone is compared, of what is seen of a function; everything where it is empty.
    """

    name: str
    wrong: Function | tuple[Function, ...]
    hint: str
    place: str = ""
    by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """A function to write.

    Attributes:
        right: minti's own, with the signature that is asked for; its name is the task's.
        probe: what is seen of a function.
        place: in the notes, for the mistakes that have none of their own.
    """

    right: Function
    probe: Probe
    place: str
    mistakes: tuple[Mistake, ...]

    @property
    def name(self) -> str:
        return self.right.__name__

    @cached_property
    def expected(self) -> Seen:
        return seen(self, self.right)

    @cached_property
    def known(self) -> list[tuple[Mistake, Seen | BaseException]]:
        """Every mistake, and what is seen of it."""
        several = [(each, each.wrong if isinstance(each.wrong, tuple) else (each.wrong,)) for each in self.mistakes]
        return [(each, attempted(self, wrong)) for each, wrongs in several for wrong in wrongs]


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
    given, line = attempted(task, function), ""
    if isinstance(given, NotImplementedError):
        return Verdict(task.name, "unwritten", "not written yet")
    if isinstance(given, BaseException):
        line = line_of(given, file)
    elif alike(given, task.expected, counting(task.expected)):
        return Verdict(task.name, "right", "right")
    for mistake, made in task.known:
        if alike(given, made, mistake.by or counting(task.expected, CHANGED)):
            says = f"{mistake.name}{line}. {mistake.hint} ({mistake.place or task.place})"
            return Verdict(task.name, "mistake", says)
    if isinstance(given, BaseException):
        why = f"stops with {type(given).__name__}: {one_line(given)}{line}"
        return Verdict(task.name, "error", why)
    if named := in_general(given, task.expected):
        return Verdict(task.name, "mistake", named)
    return Verdict(task.name, "wrong", difference(given, task.expected))


def in_general(given: Seen, expected: Seen) -> str:
    """The mistakes that any function can make; nothing where it is none of them."""
    if given.get(CHANGED) and alike(given, expected, counting(expected, CHANGED)):
        return f"right, but `{given[CHANGED]}` itself was changed. Which operation of yours works in place?"
    if not given.get(AGAIN, True):
        return "random numbers of its own: two calls differ. Is all the randomness that is needed an argument?"
    if given.get(RETURNED):
        return f"`{given[RETURNED]}` comes back as it was. What should become of it?"
    return ""


def seen(task: Task, function: Function) -> Seen:
    """What the probe sees of a function. Noise from torch's global generator is seeded: the same every time."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a wrong function does
        torch.manual_seed(0)
        found = task.probe(function)
    return found if isinstance(found, dict) else {"": found}


def attempted(task: Task, function: Function) -> Seen | BaseException:
    """The same, or what it stops with."""
    try:
        return seen(task, function)
    except (Exception, SystemExit) as error:
        return error


def counting(expected: Seen, *but: str) -> tuple[str, ...]:
    """What decides whether a function is right; the rest, beginning with "?", only tells mistakes apart."""
    return tuple(key for key in expected if key[:1] != "?" and key not in but)


def alike(given: Seen | BaseException, made: Seen | BaseException, by: tuple[str, ...]) -> bool:
    """Of two functions the same is seen, of `by`; or they stop with the same error after that."""
    if isinstance(given, BaseException) or isinstance(made, BaseException):
        if type(given) is not type(made) or (str(given) != str(made) and not isinstance(given, RecursionError)):
            return False
        given, made = (getattr(error, "seen", {}) for error in (given, made))
    return all(same(given.get(key), made.get(key)) for key in by)


def line_of(error: BaseException, file: Path) -> str:
    """The line of the learner's file where an error came from."""
    number, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            number = trace.tb_lineno
        trace = trace.tb_next
    return f", in line {number}" if number else ""
