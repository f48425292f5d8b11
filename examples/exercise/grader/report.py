"""Marks for a folder of submissions, each a folder with a learner's files."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Iterator
from pathlib import Path

from exercise.grader.process import Graded, Grading
from exercise.grader.submission import PARTS, lesson
from minti.runs.files import replacing

Row = tuple[str, dict[str, Graded]]


def submissions(folder: Path) -> list[Path]:
    """The folders in it. Raises ValueError: there are none."""
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise ValueError(f"there are no folders in {folder}; each submission is one, with its files 01_schedule.py ...")
    return found


def marks(folder: Path, parts: list[str], limit: float) -> Iterator[Row]:
    """Each submission in a process of its own, as many at a time as there are cores, in the order in which they end."""
    for part in parts:
        for task in lesson(part).tasks:
            _ = task.known  # here once, and not in every process anew
    waiting, running = submissions(folder), []
    try:
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                path = waiting.pop(0)
                handed_in = [part for part in parts if (path / f"{PARTS[part]}.py").is_file()]
                running.append((path.name, Grading(path, handed_in, limit)))
            time.sleep(0.02)
            for name, grading in [each for each in running if each[1].over()]:
                yield name, grading.found()
                grading.end()
                running.remove((name, grading))
    finally:
        for _, grading in running:
            grading.end()


def right(graded: Graded | None) -> int:
    return sum(verdict.state == "right" for verdict in graded.verdicts) if graded else 0


def table(rows: list[Row], parts: list[str]) -> str:
    """Functions that are right, by part, in Markdown; a dash where nothing was handed in."""
    counts = [len(lesson(part).tasks) for part in parts]
    lines = [f"| submission | {' | '.join(parts)} | all |", "|---" * (len(parts) + 2) + "|"]
    for name, found in rows:
        cells = [f"{right(found[part])}/{n}" if part in found else "–" for part, n in zip(parts, counts)]
        lines.append(f"| {name} | {' | '.join(cells)} | {sum(map(right, found.values()))}/{sum(counts)} |")
    return "\n".join(lines)


def write(path: Path, rows: list[Row]) -> None:
    """Every verdict as a line of a table. Raises OSError: it cannot be written."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("submission", "part", "function", "state", "says"))
        for name, found in rows:
            for part, graded in found.items():
                writer.writerows((name, part, *verdict) for verdict in graded.verdicts)
