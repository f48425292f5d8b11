"""The command line for visual anagrams and hybrid images."""

import pytest
from PIL import Image
from running import script_inside


def test_what_is_written(tmp_path):
    options = ("--num-images", 2, "--steps", 2, "--quiet", "--output", tmp_path)
    pages = []
    for way in ((), ("--turn", "mirror"), ("--hybrid", 1.5)):
        done = script_inside("illusions.py", "a photo of a red triangle", "a photo of a red heart", *options, *way)
        assert f"wrote 2 images and {tmp_path}/page.png" in done.stdout
        assert sorted(path.name for path in tmp_path.iterdir()) == ["00.png", "01.png", "page.png"]
        pages.append((Image.open(tmp_path / "01.png").tobytes(), Image.open(tmp_path / "page.png").tobytes()))
    assert len({image for image, _ in pages}) == len({page for _, page in pages}) == 3


def test_a_hybrid_of_one_prompt_is_that_prompts_sample(tmp_path):
    options = ("--num-images", 1, "--steps", 2, "--quiet", "--sampler", "ddim")
    script_inside("illusions.py", "a red star", "a red star", "--hybrid", 2, *options, "--output", tmp_path / "a")
    script_inside("sample.py", "a red star", *options, "--output", tmp_path / "b")
    ours, plain = (Image.open(tmp_path / name).tobytes() for name in ("a/00.png", "b/00-00.png"))
    assert ours == plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--turn", "twice"), "argument --turn: invalid choice: 'twice'"),
        (("--hybrid", 0), "--hybrid 0: expected more than 0, in latents"),
        (("--hybrid", -1.5), "--hybrid -1.5: expected more than 0, in latents"),
        (("--hybrid", "nan"), "argument --hybrid: nan is not a finite number"),
        (("--hybrid", 1, "--turn", "quarter"), "argument --turn: not allowed with argument --hybrid"),
    ],
)
def test_bad_input(tmp_path, options, message):
    done = script_inside("illusions.py", "a", "b", *options, "--output", tmp_path, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_the_classifier_is_asked_for_what_a_prompt_says(tmp_path):
    """Two images, two steps: a table of six rows, each share one of 0, 50 and 100."""
    done = script_inside("toybox/compare_illusions.py", "--count", 2, "--steps", 2, "--quiet", "--output", tmp_path)
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]]
    assert len(rows) == 6
    shares = [[int(cell) for cell in row[2:6]] for row in rows]
    assert {share for row in shares for share in row} <= {0, 50, 100}
    assert all(both <= min(first, second) for first, second, both, _ in shares)
    assert all(0 < float(row[6]) < 50 for row in rows)
    assert (tmp_path / "illusions.png").is_file()
