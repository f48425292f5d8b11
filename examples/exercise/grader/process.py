"""Grades a folder in a process of its own, ended when its time is over. No sandbox: it may do what its user may."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from exercise.grader.part import Verdict
from exercise.grader.submission import lesson
from exercise.grader.worker import work

STARTING = 300.0  # seconds for Python and torch to start, before any of the learner's code runs
PROCESSES = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")  # a fork has torch already


class Graded(NamedTuple):
    """Of a part: a verdict for each function, where its image is, and what else is to be said."""

    verdicts: list[Verdict]
    image: str | None
    remark: str


class Grading:
    """A folder that is being graded; `limit` in seconds for all parts; no images are drawn where there is no folder."""

    def __init__(
        self,
        folder: Path,
        parts: list[str],
        limit: float,
        images: Path | None = None,
        solved: dict[str, list[str]] | None = None,
    ):
        torch.set_num_threads(1)  # a process that has used several threads can have no forks that do
        self.parts, self.limit, self.late, self.deadline = parts, limit, False, time.monotonic() + STARTING
        self.own = tempfile.TemporaryDirectory()
        self.results, self.started = Path(self.own.name) / "results.jsonl", False
        job = {"folder": folder.resolve(), "parts": parts, "solved": solved or {}, "results": self.results}
        self.process = PROCESSES.Process(target=work, args=(job | {"images": images and images.resolve()},))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a fork, where numpy has threads
            self.process.start()

    def over(self) -> bool:
        """It has ended, or its time is over, which is counted from its first result on."""
        if not self.started and self.results.exists():
            self.deadline, self.started = time.monotonic() + self.limit, True
        self.late = self.process.is_alive() and time.monotonic() > self.deadline
        return self.late or not self.process.is_alive()

    def end(self) -> None:
        """Ends the process and what it has started, where they have not ended by themselves."""
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError, PermissionError):  # it has ended, or has no group yet
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.own.cleanup()

    def found(self) -> dict[str, Graded]:
        """{part: what was found}, after the end."""
        lines = self.results.read_text(encoding="utf-8").splitlines() if self.results.exists() else []
        found = [line for line in map(parsed, lines) if line]
        return {
            part: sorted_out(part, [line[1:] for line in found if line[0] == part], self.late, self.limit)
            for part in self.parts
        }


def grade(
    folder: Path,
    parts: list[str],
    limit: float,
    images: Path | None = None,
    solved: dict[str, list[str]] | None = None,
) -> dict[str, Graded]:
    """{part: what was found} of one folder."""
    grading = Grading(folder, parts, limit, images, solved)
    try:
        while not grading.over():
            time.sleep(0.02)
        return grading.found()
    finally:
        grading.end()


def parsed(line: str) -> list[str] | None:
    """A line of the results; None where it is half a line."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def sorted_out(part: str, lines: list[list[str]], late: bool, limit: float) -> Graded:
    """What was found of a part; functions of which nothing was heard took too long, or the process ended in them."""
    verdicts = [Verdict(*line[1:]) for line in lines if line[0] == "verdict"]
    image = next((line[1] for line in lines if line[0] == "image"), None)
    remark = next((f"no image: {line[1]}" for line in lines if line[0] == "failed"), "")
    missing = [task.name for task in lesson(part).tasks][len(verdicts) :]
    slow = f"took more than the {limit:g} seconds there were: does a loop never end?"
    gone = "ended the process it ran in"
    for i, name in enumerate(missing):
        if lines and i == 0:
            verdicts.append(Verdict(name, "late", slow) if late else Verdict(name, "error", gone))
        else:
            verdicts.append(Verdict(name, "error", "was not reached"))
    if not missing and image is None and not remark and late:
        remark = f"no image: it {slow}"
    return Graded(verdicts, image, remark)
