"""The exercise's grader: checks each function, and names the mistake in a wrong one if it is a common one.

    python examples/exercise/check.py                   all parts, as a list
    python examples/exercise/check.py 1                 the first part; or its name, schedule
    python examples/exercise/check.py --report FOLDER   for teachers: marks of every submission, a folder each

A learner's code runs in a process of its own with a time limit. This is no sandbox: the code can do whatever you can.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from support.command_line import _Parser, finite, make_output, run

from exercise.grader import progress, report
from exercise.grader.process import Graded, grade
from exercise.grader.submission import PARTS, lesson, named

MARKS = {
    "right": "right",
    "unwritten": "     ",
    "mistake": "WRONG",
    "wrong": "WRONG",
    "error": "ERROR",
    "late": "LATE ",
}


def main() -> None:
    parser = _Parser(description=__doc__.split("\n")[0])
    parser.add_argument("part", nargs="?", help="number or name of a part; default: all parts")
    parser.add_argument(
        "--folder", type=Path, default=Path(__file__).parent, help="folder with your files; default: this one"
    )
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="prints the marks of all folders in FOLDER")
    parser.add_argument("--output", type=Path, default=Path("outputs/exercise"), help="for images, progress and marks")
    parser.add_argument("--time-limit", type=finite, help="seconds for a part, or for a submission; default: 120")
    args = parser.parse_args()
    if args.time_limit is not None and args.time_limit <= 0:
        raise ValueError(f"--time-limit {args.time_limit:g} is not above 0")
    parts = [named(args.part)] if args.part is not None else list(PARTS)
    for folder in filter(None, (args.folder, args.report)):
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder")
    make_output(args.output)
    if args.report:
        marks(args.report, parts, args.time_limit or 120, args.output)
    else:
        check(args.folder, parts, args.time_limit or 120, args.output)


def check(folder: Path, parts: list[str], limit: float, output: Path) -> None:
    """Grades a learner's parts, prints the verdicts, and stores the progress."""
    solved = progress.read(output, folder)
    found = grade(folder, parts, limit * len(parts), output if len(parts) == 1 else None, solved)
    for part, graded in found.items():
        show(part, graded)
    solved = progress.with_results(solved, found)
    progress.write(output, folder, solved)
    print(progress.shown(solved))


def show(part: str, graded: Graded) -> None:
    print(f"{PARTS[part]}.py")
    for verdict in graded.verdicts:
        print(
            f"  {MARKS[verdict.state]}  {verdict.function}" + ("" if verdict.state == "right" else f": {verdict.says}")
        )
    if graded.image:
        print(f"  image: {graded.image}")
    if graded.remark:
        print(f"  {graded.remark}")


def marks(folder: Path, parts: list[str], limit: float, output: Path) -> None:
    """Grades every submission; writes every verdict to marks.csv."""
    rows = []
    for name, found in report.marks(folder, parts, limit):
        rows.append((name, found))
        total = sum(len(lesson(part).tasks) for part in parts)
        print(f"{name}: {sum(map(report.right, found.values()))} of {total}", file=sys.stderr)
    rows.sort()
    print(report.table(rows, parts))
    report.write(output / "marks.csv", rows)


if __name__ == "__main__":
    run(main)
