"""Grades a folder in a process of its own, ended when its time is over. No sandbox: it may do what its user may."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from exercise.grader.part import Verdict
from exercise.grader.submission import lesson

STARTING = 300.0  # seconds for Python and torch to start, before any of the learner's code runs


class Graded(NamedTuple):
    """Of a part: a verdict for each function, where its image is, and what else is to be said."""

    verdicts: list[Verdict]
    image: str | None
    remark: str


def grade(
    folder: Path,
    parts: list[str],
    limit: float,
    images: Path | None = None,
    solved: dict[str, list[str]] | None = None,
) -> dict[str, Graded]:
    """{part: what was found}; `limit` in seconds for all of them; no images are drawn where there is no folder."""
    with tempfile.TemporaryDirectory() as own:
        job, results = Path(own) / "job.json", Path(own) / "results.jsonl"
        asked = {"folder": str(folder.resolve()), "parts": parts, "solved": solved or {}, "results": str(results)}
        job.write_text(json.dumps(asked | {"images": images and str(images.resolve())}), encoding="utf-8")
        ended = run([sys.executable, str(Path(__file__).with_name("worker.py")), str(job)], results, limit)
        lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    found = [line for line in map(parsed, lines) if line]
    return {part: sorted_out(part, [line[1:] for line in found if line[0] == part], ended, limit) for part in parts}


def run(command: list[str], results: Path, limit: float) -> str:
    """Waits for a process, `limit` seconds from its first result on; "late" where it had to be ended, else "ended"."""
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, start_new_session=True, **quiet)
    deadline, started = time.monotonic() + STARTING, False
    try:
        while process.poll() is None:
            if not started and results.exists():
                deadline, started = time.monotonic() + limit, True
            if time.monotonic() > deadline:
                return "late"
            time.sleep(0.05)
        return "ended"
    finally:
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError, PermissionError):  # it has ended
                os.killpg(process.pid, signal.SIGKILL)  # and what it has started
        else:
            process.kill()
        process.wait()


def parsed(line: str) -> list[str] | None:
    """A line of the results; None where it is half a line."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def sorted_out(part: str, lines: list[list[str]], ended: str, limit: float) -> Graded:
    """What was found of a part; functions of which nothing was heard took too long, or the process ended in them."""
    verdicts = [Verdict(*line[1:]) for line in lines if line[0] == "verdict"]
    image = next((line[1] for line in lines if line[0] == "image"), None)
    remark = next((f"no image: {line[1]}" for line in lines if line[0] == "failed"), "")
    missing = [task.name for task in lesson(part).tasks][len(verdicts) :]
    late = f"took more than the {limit:g} seconds there were: does a loop never end?"
    gone = "ended the process it ran in"
    for i, name in enumerate(missing):
        if lines and i == 0:
            verdicts.append(Verdict(name, "late" if ended == "late" else "error", late if ended == "late" else gone))
        else:
            verdicts.append(Verdict(name, "error", "was not reached"))
    if not missing and image is None and not remark and ended == "late":
        remark = f"no image: it {late}"
    return Graded(verdicts, image, remark)
