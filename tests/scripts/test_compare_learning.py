"""The comparison of ways to learn: its table, from what lies in its folder."""

import json
import math
import sys

import pytest
from running import ROOT, script_inside


@pytest.fixture(scope="module")
def compare():
    sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "examples/toybox")]
    try:
        import compare_learning

        yield compare_learning
    finally:
        del sys.path[:2]


def record(folder, way, toy, seed, share, recognised):
    measures = dict.fromkeys(("alone", "in styles", "in company", "obeyed", "leaked", "another toy"), share)
    measures |= {"likeness": 0.5, "alike": 0.25, "seconds": 10.0 * (seed + 1), "recognised": recognised, "steps": 9}
    path = folder / f"toy-{toy}-seed-{seed}-{way}.json"
    path.write_text(json.dumps({"way": way, "toy": toy, "seed": seed} | measures), encoding="utf-8")


def test_the_table_has_means_and_standard_errors(compare, tmp_path):
    """Shares 1, 1, 0.5, 0.5: mean 75 %, standard deviation 0.2887, by the root of four 14 %."""
    for i, share in enumerate((1.0, 1.0, 0.5, 0.5)):
        record(tmp_path, "word", i % 2, i // 2, share, 4.0 if i == 0 else math.nan)
    record(tmp_path, "LoRA", 0, 0, 1.0, math.nan)
    head, _, word, lora = compare.table(tmp_path).splitlines()
    assert word.count("| 75 ± 14 ") == 6
    assert word.startswith("| word | 4 | ")
    assert word.endswith("| 0.50 | 0.25 | 4 (1 of 2) | 15 |")
    assert lora.startswith("| LoRA | 1 | 100 ± nan ")
    assert {line.count("|") for line in (head, word, lora)} == {head.count("|")}


def test_bad_input_is_one_line(tmp_path):
    done = script_inside("toybox/compare_learning.py", "--ways", "magic", "--output", tmp_path, check=False)
    assert done.returncode == 2
    assert "invalid choice: 'magic'" in done.stderr
    assert done.stderr.count("\n") == 1
