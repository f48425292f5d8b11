"""A folder with a learner's files, in this process: they are opened, judged part by part, and their images drawn."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from exercise.grader.part import Function, Part, Verdict, judge, line_of
from minti.formats.image_files import save_png
from minti.runs.messages import one_line, short_repr

PARTS = {
    "schedule": "01_schedule",
    "steps": "02_steps",
    "guidance": "03_guidance",
    "attention": "04_attention",
    "loss": "05_loss",
    "word": "06_word",
    "loop": "07_loop",
    "evaluation": "08_evaluation",
    "lora": "09_lora",
    "prior": "10_prior",
    "gradient": "11_gradient",
    "tokens": "12_tokens",
    "training_step": "13_training_step",
}


def named(name: str) -> str:
    """A part by its name, its number or its file's name. Raises ValueError: there is none."""
    for part, stem in PARTS.items():
        if name.removesuffix(".py") in (part, stem, stem[:2], str(int(stem[:2]))):
            return part
    numbered = ", ".join(f"{int(stem[:2])} {part}" for part, stem in PARTS.items())
    raise ValueError(f"there is no part {short_repr(name)}; the parts are {numbered}")


def lesson(part: str) -> Part:
    """What is known of a part."""
    return importlib.import_module(f"exercise.grader.lessons.{part}").PART


def functions(file: Path) -> dict[str, Function]:
    """What a learner's file defines. Raises ValueError: it is missing, or cannot be run; one line says why."""
    try:
        source = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file.name} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}") from None
    namespace: dict[str, Function] = {"__name__": file.stem, "__file__": str(file)}
    try:
        exec(compile(source, str(file), "exec"), namespace)
    except SyntaxError as error:
        raise ValueError(f"{file.name} is not Python: {error.msg}, in line {error.lineno}") from None
    except (Exception, SystemExit) as error:
        why = f"{type(error).__name__}: {one_line(error)}{line_of(error, file)}"
        raise ValueError(f"{file.name} cannot be opened: {why}") from None
    return namespace


def judged(folder: Path, part: str) -> Iterator[Verdict]:
    """A verdict for each function of a part, in their order."""
    file, tasks = folder / f"{PARTS[part]}.py", lesson(part).tasks
    if not file.exists():
        yield from (Verdict(task.name, "unwritten", f"not written yet: there is no {file.name}") for task in tasks)
        return
    try:
        written = functions(file)
    except ValueError as error:
        yield from (Verdict(task.name, "error", str(error)) for task in tasks)
        return
    for task in tasks:
        function = written.get(task.name)
        if not callable(function):
            says = f"not written yet: there is no function {task.name} in {file.name}"
            yield Verdict(task.name, "unwritten", says)
        else:
            yield judge(task, function, file)


def available(folder: Path, solved: dict[str, list[str]]) -> SimpleNamespace:
    """Every function of the exercise: the learner's, of those that were right, and for the rest minti's own."""
    every = SimpleNamespace()
    for part, stem in PARTS.items():
        right = solved.get(part, ())
        try:
            written = functions(folder / f"{stem}.py") if right else {}
        except ValueError:  # it was right once
            written = {}
        for task in lesson(part).tasks:
            mine = written.get(task.name) if task.name in right else None
            setattr(every, task.name, mine or task.right)
    return every


def draw(folder: Path, part: str, solved: dict[str, list[str]], path: Path) -> None:
    """The image at the end of a part, made with the learner's functions."""
    save_png(lesson(part).image(available(folder, solved)), path)
