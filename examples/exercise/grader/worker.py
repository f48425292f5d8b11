"""The process in which a learner's files run: `python worker.py JOB.json`.

What is found goes into a file, line by line, so that it is known also when the process is ended from outside.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("OMP_NUM_THREADS", "2")

from exercise.grader.submission import draw, judged
from minti.runs.messages import one_line


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    folder, solved = Path(job["folder"]), job["solved"]
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


if __name__ == "__main__":
    main()
