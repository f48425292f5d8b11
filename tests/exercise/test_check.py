"""The grader as it is run: submissions that do harm, notebooks, and what is typed wrongly."""

import csv
import math

import nbformat
import pytest
import torch
from running import ROOT, script_inside

from exercise import make_notebook
from exercise.grader import progress
from exercise.grader.compare import difference, shown
from exercise.grader.submission import PARTS, functions, judged, lesson

CHECK = "exercise/check.py"
LINE = "    return torch.cumprod(1 - betas, dim=0)"
DEFINED = "import torch\n\ndef make_alphas_cumprod(betas):\n{}\n"
MISTAKEN = {  # what is in a file, and what is said of its first function
    "not Python": ("def make_alphas_cumprod(betas:\n", "01_schedule.py is not Python: "),
    "signature": (DEFINED.format(LINE).replace("betas):", "beta, t):"), "takes (beta, t); expected (betas)"),
    "imports": ("import nowhere_at_all\n", "cannot be opened: ModuleNotFoundError: No module named 'nowhere_at_all'"),
}
HARMFUL = {
    "endless": (DEFINED.format("    while True:\n        pass"), "does a loop never end?"),
    "nonsense": ("print('nonsense' * 100_000)\n" + DEFINED.format(LINE), "right"),
    "leaves": ("import os\n" + DEFINED.format("    os._exit(0)"), "ended the process it ran in"),
}


@pytest.mark.parametrize("source, says", MISTAKEN.values(), ids=MISTAKEN)
def test_what_is_wrong_with_a_file_is_said_in_a_line(source, says, tmp_path):
    (tmp_path / "01_schedule.py").write_text(source, encoding="utf-8")
    first, _ = judged(tmp_path, "schedule")
    assert first.state == "error" and says in first.says and "\n" not in first.says


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    """As editors on Windows write it, and as Python runs it."""
    (tmp_path / "01_schedule.py").write_text("def add_noise(*x):\n    return None\n", encoding="utf-8-sig")
    assert functions(tmp_path / "01_schedule.py")["add_noise"](1) is None


@pytest.mark.slow
def test_a_report_of_submissions_that_do_harm(tmp_path):
    """Each has a process of its own, one line says what happened, and the others are graded."""
    for name, (source, _) in HARMFUL.items():
        (tmp_path / "all" / name).mkdir(parents=True)
        (tmp_path / "all" / name / "01_schedule.py").write_text(source, encoding="utf-8")
    out = tmp_path / "out"
    done = script_inside(CHECK, "1", "--report", tmp_path / "all", "--output", out, "--time-limit", 3)
    assert "nonsensenonsense" not in done.stdout and "| nonsense | 1/2 | 1/2 |" in done.stdout
    with (out / "marks.csv").open(newline="", encoding="utf-8") as file:
        said = {row["submission"]: row["says"] for row in csv.DictReader(file) if row["function"] != "add_noise"}
    assert said.keys() == HARMFUL.keys()
    assert [name for name, (_, expected) in HARMFUL.items() if expected not in said[name]] == []


@pytest.mark.slow
def test_a_part_ends_in_a_picture_and_is_remembered(tmp_path):
    (tmp_path / "11_gradient.py").write_text(
        "from exercise.grader.lessons.gradient import gradient_of, guided_noise\n", encoding="utf-8"
    )
    done = script_inside(CHECK, "gradient", "--folder", tmp_path, "--output", tmp_path / "out")
    assert "[x] 11_gradient.py  2 of 2" in done.stdout and "[ ] 01_schedule.py  0 of 2" in done.stdout
    assert (tmp_path / "out" / "gradient.png").is_file() and (tmp_path / "out" / "progress.json").is_file()


@pytest.mark.slow
def test_the_table_of_likenesses_is_drawn_in_the_worker(tmp_path):
    """Its image needs the toybox's modules, of which one is called as one of the grader's."""
    names = "among_themselves, likeness, position"
    (tmp_path / "08_evaluation.py").write_text(
        f"from exercise.grader.lessons.evaluation import {names}\n", encoding="utf-8"
    )
    done = script_inside(CHECK, "evaluation", "--folder", tmp_path, "--output", tmp_path / "out")
    assert "no image" not in done.stdout and (tmp_path / "out" / "evaluation.png").is_file()


def test_a_folder_s_progress_is_its_own(tmp_path):
    one, other = {"steps": ["ddim_step"]}, {"guidance": ["guided"]}
    (tmp_path / progress.FILE).write_text('{"steps": ["ddpm_step"]}', encoding="utf-8")  # as it was kept before
    assert progress.read(tmp_path, tmp_path / "one") == {}
    progress.write(tmp_path, tmp_path / "one", one)
    progress.write(tmp_path, tmp_path / "other", other)
    assert progress.read(tmp_path, tmp_path / "one") == one and progress.read(tmp_path, tmp_path / "other") == other


def test_the_last_part_leads_to_the_challenge():
    done = {part: [task.name for task in lesson(part).tasks] for part in PARTS}
    assert "examples/challenge.md" in progress.shown(done) and (ROOT / "examples/challenge.md").is_file()
    assert "challenge" not in progress.shown(done | {"loop": []})


@pytest.mark.parametrize(
    "given, says",
    [
        (torch.tensor(0.5), "gives a tensor, expected a number: `.item()`?"),
        (0.25, "yours 0.25, right 0.5"),
        (math.nan, "your result contains NaN"),
        ("half", "gives a text, expected a number"),
        (None, "gives nothing: is there a return?"),
    ],
)
def test_how_a_result_differs(given, says):
    assert difference({"": given}, {"": 0.5}) == says


@pytest.mark.parametrize(
    "value, says",
    [
        (torch.tensor([0.9, 0.72]), "[0.9, 0.72]"),
        (torch.ones(1, 1, 1, 1), "1"),
        (torch.tensor([3]), "[3]"),
        (torch.ones(2, 1, 2, 1) / 3, "[[0.333, 0.333], [0.333, 0.333]]"),
        (("a toy", 2), '("a toy", 2)'),
    ],
)
def test_how_a_value_is_shown(value, says):
    assert shown(value) == says


@pytest.mark.parametrize(
    "options, says",
    [
        (["14"], "there is no part '14'; the parts are 1 schedule"),
        (["--folder", "nowhere"], "nowhere is not a folder"),
        (["--time-limit", "0"], "is not above 0"),
    ],
)
def test_what_is_typed_wrongly(options, says, tmp_path):
    done = script_inside(CHECK, *options, "--output", tmp_path, check=False)
    assert done.returncode == 1 and says in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_notebook_is_current():
    stored = nbformat.read(ROOT / "examples/exercise/exercise.ipynb", as_version=4)
    assert stored == make_notebook.notebook(), "run python examples/exercise/make_notebook.py"
