"""examples/questions_003.md: its code gives the results below it, and its commands exist."""

import doctest
import re
import shlex
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from running import script_inside

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "examples/questions_003.md").read_text(encoding="utf-8")
PROSE = re.sub(r"```python\n.*?```", "", PAGE, flags=re.DOTALL)
# `python examples/x.py --option`, `x.py --option`, and lines of a block of commands
COMMANDS = re.findall(r"(?:`|^)(?:python\s+examples/)?([\w/]+\.py)([^`\n]*(?:\\\n[^`\n]*)*)", PROSE, re.MULTILINE)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def same(got: str, expected: str) -> bool:
    """The same words, and numbers that differ by no more than two of their last digits: machines round differently."""
    pairs = list(zip(NUMBER.findall(got), NUMBER.findall(expected)))
    room = [2.01 * 10.0 ** -len(number.partition(".")[2]) if "." in number else 0 for _, number in pairs]
    near = all(abs(float(a) - float(b)) <= most for (a, b), most in zip(pairs, room))
    return near and NUMBER.sub("#", got).split() == NUMBER.sub("#", expected).split()


@pytest.mark.slow
def test_the_code_gives_the_results_below_it(monkeypatch):
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    for example in doctest.DocTestParser().get_examples(PAGE):
        with redirect_stdout(StringIO()) as out:
            exec(compile(example.source, f"line {example.lineno + 1} of the page", "single"), names)
        assert same(out.getvalue(), example.want), f"{example.source}gives {out.getvalue()}"


def test_numbers_that_differ_are_seen():
    assert same("[0.12, 3]\n", "[0.13, 3]\n")
    for other in ("[0.15, 3]\n", "[0.12, 4]\n", "[0.12]\n", "(0.12, 3)\n"):
        assert not same(other, "[0.12, 3]\n")


@pytest.mark.parametrize("name", sorted({name for name, _ in COMMANDS if not name.startswith("tests/")}))
def test_the_commands_exist(name):
    told = script_inside(name, "--help").stdout
    options = [word for script, rest in COMMANDS if script == name for word in shlex.split(rest)]
    words = [word for word in options if word.startswith("--") or name.endswith("see.py")]
    assert not [word for word in words if word not in told]


@pytest.mark.parametrize("what", ["schedules", "timestep", "variance"])
def test_what_is_to_be_seen(tmp_path, what):
    script_inside("toybox/see.py", what, "--output", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{what}.png"]


def test_the_toybox_s_clip_recognises_what_training_never_named_so(tmp_path):
    """Four times in five at least, where chance would be right once in eight."""
    told = script_inside("toybox/see.py", "zero-shot", "--count", 32, "--output", tmp_path).stdout
    assert int(re.search(r"shape: (\d+) ", told)[1]) >= 80
