"""`edit.py`: prompt-to-prompt images, and one-line errors."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import script_inside

TOY = Path(__file__).parents[2] / "examples" / "concepts" / "white-cross-blue-spot" / "0.png"
RED, GREEN = "a photo of a red star", "a photo of a green star"
SHOWN = "a photo of a small white cross with a blue spot on a teal background"
FEW = ("--steps", 2, "--num-images", 1, "--quiet")


def edit(*args):
    return script_inside("edit.py", *args, check=False)


def pixels(folder, name):
    return np.asarray(Image.open(folder / f"00-{name}.png")).astype(int)


def test_only_another_prompt_makes_another_image(tmp_path):
    """The second way adds nothing to the model, and the source is the same image."""
    for name, prompt, options in (
        ("same", RED, ()),
        ("other", GREEN, ("--blend", "star", "--weight", "green=2")),
        ("alone", GREEN, ("--cross-attention", 0, "--self-attention", 0)),
    ):
        assert edit(RED, prompt, *options, *FEW, "--output", tmp_path / name).returncode == 0
        assert (tmp_path / name / "edit.png").is_file()
        assert np.array_equal(pixels(tmp_path / name, "source"), pixels(tmp_path / "same", "source"))
    assert np.array_equal(pixels(tmp_path / "same", "edited"), pixels(tmp_path / "same", "source"))
    assert not np.array_equal(pixels(tmp_path / "other", "edited"), pixels(tmp_path / "other", "source"))
    assert not np.array_equal(pixels(tmp_path / "alone", "edited"), pixels(tmp_path / "other", "edited"))


def test_a_given_image_comes_back_as_the_source(tmp_path):
    """In 20 steps and without guidance, within six grey levels: some of them the VAE's."""
    changed = SHOWN.replace("white", "red")
    done = edit(SHOWN, changed, "--invert", TOY, "--steps", 20, "--guidance-scale", 1, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    given, source, edited = (pixels(tmp_path, name) for name in ("given", "source", "edited"))
    assert np.array_equal(given, np.asarray(Image.open(TOY).convert("RGB")))
    assert np.abs(source - given).mean() < 6 < np.abs(edited - given)[given.min(axis=2) > 200].mean()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((RED, "toys"), "have no word in common, so they cannot be aligned"),
        ((RED, GREEN, "--blend", "red"), "'red' is not in the prompt 'a photo of a green star'"),
        ((RED, GREEN, "--blend", "red=blue"), "'blue' is not in the prompt 'a photo of a green star'"),
        ((RED, GREEN, "--weight", "red=2"), "'red' is not in the prompt 'a photo of a green star'"),
        ((RED, GREEN, "--weight", "green"), "'green'; expected WORD=WEIGHT, as green=2"),
        ((RED, GREEN, "--cross-attention", "2"), "2 is not a share of the steps, 0 to 1"),
        ((RED, GREEN, "--invert", "nowhere.png"), "nowhere.png"),
    ],
)
def test_what_cannot_be_edited_is_told_in_one_line(tmp_path, args, message):
    done = edit(*args, *FEW, "--output", tmp_path)
    assert done.returncode != 0
    assert message in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
