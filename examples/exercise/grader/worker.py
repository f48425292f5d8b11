"""What runs in the process in which a learner's files are graded.

What is found goes into a file, line by line, so that it is known also when the process is ended from outside.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from exercise.grader.submission import draw, judged
from minti.runs.messages import one_line


def work(job: dict[str, Any]) -> None:
    """Grades the parts of a folder; the process hears nothing, and what it prints is not seen."""
    if hasattr(os, "setsid"):
        os.setsid()  # a group of its own, so that what it starts can be ended with it
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)) if job["images"] else 1)
    folder, solved = job["folder"], job["solved"]
    with open(job["results"], "a", encoding="utf-8") as file:

        def tell(*found: str) -> None:
            file.write(json.dumps(found) + "\n")
            file.flush()

        for part in job["parts"]:
            tell(part, "begun")
            verdicts = []
            for verdict in judged(folder, part):
                verdicts.append(verdict)
                tell(part, "verdict", *verdict)
            right = [verdict.function for verdict in verdicts if verdict.state == "right"]
            if job["images"] and right:
                try:
                    path = Path(job["images"]) / f"{part}.png"
                    draw(folder, part, solved | {part: right}, path)
                    tell(part, "image", str(path))
                except (Exception, SystemExit) as error:
                    tell(part, "failed", f"{type(error).__name__}: {one_line(error)}")
        tell("", "done")
