"""What a learner has solved so far, folder by folder: a file beside the images, and the list it is shown as."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from exercise.grader.process import Graded
from exercise.grader.submission import PARTS, lesson
from minti.runs.files import replacing

FILE = "progress.json"


def stored(output: Path) -> dict[str, Any]:
    """{folder: what is solved in it}; nothing where there is no such file or it is damaged."""
    try:
        found = json.loads((output / FILE).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read(output: Path, folder: Path) -> dict[str, list[str]]:
    """{part: the functions that were right}, of the files in `folder`."""
    found = stored(output).get(str(folder.resolve()))
    try:
        return {part: [str(name) for name in found[part]] for part in PARTS if part in found}
    except TypeError:  # there is nothing, or something else
        return {}


def write(output: Path, folder: Path, solved: dict[str, list[str]]) -> None:
    """Raises OSError: it cannot be written."""
    others = {name: each for name, each in stored(output).items() if isinstance(each, dict)}
    with replacing(output / FILE) as temporary:
        temporary.write_text(json.dumps(others | {str(folder.resolve()): solved}, indent=1) + "\n", encoding="utf-8")


def with_results(solved: dict[str, list[str]], found: dict[str, Graded]) -> dict[str, list[str]]:
    """What is solved after another grading."""
    right = {part: [v.function for v in graded.verdicts if v.state == "right"] for part, graded in found.items()}
    return {part: names for part, names in (solved | right).items() if names}


def shown(solved: dict[str, list[str]]) -> str:
    """One line for each part, and where to go on after the last."""
    lines = []
    for part, stem in PARTS.items():
        asked, done = [task.name for task in lesson(part).tasks], solved.get(part, [])
        mark = "x" if set(asked) <= set(done) else "-" if done else " "
        lines.append(f"[{mark}] {stem}.py  {sum(name in done for name in asked)} of {len(asked)}")
    if all(line.startswith("[x]") for line in lines):
        lines.append("All parts are solved. Two open challenges are next: examples/challenge.md.")
    return "\n".join(lines)
