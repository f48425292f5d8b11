"""The commands of examples/notes.md: what they print is right where the right answer is known."""

import re

from running import script_inside


def table(text):
    """The lines of a Markdown table, {first cell: the other cells}."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {first: rest for first, *rest in lines if not re.match("-+$", first)}


def test_true_images_are_nearer_to_true_ones_than_noise_is(tmp_path):
    """By FID and by KID; and the judge sees many shapes in true images, hardly more than one in noise."""
    done = script_inside("toybox/compare_sets.py", "--count", 16, "--scales", "--output", tmp_path)
    rows = table(done.stdout)
    true, noise = ([float(cell) for cell in rows[name]] for name in ("other true images", "noise"))
    assert 0 < true[0] < noise[0] and abs(true[1]) < 0.1 * noise[1]
    assert true[5] > 4 and noise[5] < 2
