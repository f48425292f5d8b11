"""Which cross-attention says shape and which colour: what `examples/words.md` tells of the toybox."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_third_says_shape_and_the_fourth_the_colour(tmp_path):
    """With six pairs and eight steps: the entry named reads the first toy's prompt, all others the second's."""
    command = [sys.executable, "examples/toybox/which_layer.py", "--count", "6", "--steps", "8", "--output", tmp_path]
    subprocess.run([*command, "--ranges", "1", "--quiet"], cwd=ROOT, check=True, capture_output=True)
    with (tmp_path / "which_layer.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))

    def share(way, column):
        seen = [row[column] == "True" for row in rows if row["way"] == way]
        return sum(seen) / len(seen)

    assert share("layer 3 alone", "shape 1") >= 5 / 6 and share("layer 3 alone", "main 1") <= 1 / 6
    assert share("layer 4 alone", "main 1") >= 3 / 6 and share("layer 4 alone", "shape 1") <= 1 / 6
    assert share("layer 1 alone", "shape 2") >= 5 / 6 and share("layer 2 alone", "main 2") >= 5 / 6
    assert share("range 1 alone", "shape 1") >= 5 / 6  # one range is all timesteps: nothing is left to the second
