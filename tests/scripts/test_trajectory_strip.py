"""The sampling trajectory, as the scripts show it."""

from PIL import Image, ImageSequence
from running import script_inside


def test_the_strip_and_the_animation_end_with_the_picture(tmp_path):
    """Of each prompt's first picture, in a batch with others: a strip of at most ten steps, a GIF of at most 25."""
    script_inside(
        "sample.py", "a red star", "a moon", "--num-images", 2, "--steps", 27, "--trajectory", "--output", tmp_path
    )
    assert (
        sorted(path.stem for path in tmp_path.glob("*-trajectory.*")) == ["00-trajectory"] * 2 + ["01-trajectory"] * 2
    )
    drawn = Image.open(tmp_path / "01-00.png")
    strip = Image.open(tmp_path / "01-trajectory.png")
    columns = (strip.width - 190) // 132
    assert columns == 9  # every third of 27
    left, top = 190 + (columns - 1) * 132, 24
    last = strip.crop((left, top, left + 128, top + 128))
    # To one grey level: decoded in a batch with other steps, here and there the rounding to 8 bits falls elsewhere.
    enlarged = drawn.resize((128, 128), Image.Resampling.NEAREST)
    assert max(abs(a - b) for a, b in zip(last.tobytes(), enlarged.tobytes(), strict=True)) <= 1

    with Image.open(tmp_path / "01-trajectory.gif") as animation:
        assert animation.info["loop"] == 0
        frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(animation)]
    assert len(frames) == 14  # every second of 27
    assert frames[0].size == (2 * 256 + 4, 256)
    final = frames[-1].crop((0, 0, 256, 256)).resize((64, 64), Image.Resampling.NEAREST)
    difference = [abs(a - b) for a, b in zip(final.tobytes(), drawn.tobytes())]
    assert sum(difference) / len(difference) < 8  # a GIF has 256 colours
    first = frames[0].crop((0, 0, 256, 256)).resize((64, 64), Image.Resampling.NEAREST)
    assert sum(abs(a - b) for a, b in zip(first.tobytes(), drawn.tobytes())) / len(difference) > 30  # noise


def test_a_random_initializer_and_the_nearest_words(tmp_path):
    options = ("--initializer", "random", "--steps", 12, "--sample-steps", 2, "--columns", 2, "--vectors", 2)
    printed = script_inside("train.py", *options, "--output", tmp_path).stdout
    lines = [line for line in printed.splitlines() if line.startswith("nearest to ")]
    assert [line.split(",")[0] for line in lines] == ["nearest to <concept>", "nearest to <concept>_1"]
    assert all(line.count("(0.") == 5 for line in lines)
    page = Image.open(tmp_path / "page.png")
    assert page.height == 9 * 132 + 4  # the training images, the word alone, seven prompts: no initializer to compare
