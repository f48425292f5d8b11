"""`train.py --vectors auto`: what it writes and prints, and going on after an interruption in its second run."""

import re
import shutil

import pytest
from PIL import Image
from running import script_inside
from safetensors.torch import load_file

OPTIONS = ("--vectors", "auto", "--steps", 4, "--checkpoint-every", 2, "--sample-steps", 1, "--columns", 1)
WORD = "learned_embeds.safetensors"


def learn(folder, *more, check=True):
    return script_inside("train.py", *OPTIONS, "--prompts", "a {}", "--output", folder, "--quiet", *more, check=check)


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grown")
    return folder, learn(folder)


def test_the_decisions_are_printed_and_the_word_has_the_vectors_that_were_kept(grown):
    folder, done = grown
    lines = re.findall(
        r"^(\d) vectors?: loss [\d.]+(?:, lower by (-?[\d.]+) \+- ([\d.]+): (kept|not kept))?$", done.stdout, re.M
    )
    assert [int(line[0]) for line in lines] == list(range(1, len(lines) + 1))
    assert len(lines) >= 2
    for rows, gain, error, verdict in lines[1:]:
        assert (float(gain) > 2 * float(error)) == (verdict == "kept"), (rows, gain, error)
    kept = 1 + sum(line[3] == "kept" for line in lines)
    (rows,) = load_file(folder / WORD).values()
    assert len(rows) == kept
    assert {f"losses{stage}.csv" for stage in ("", "-2-vectors")} <= {path.name for path in folder.iterdir()}
    assert Image.open(folder / "curves.png").width > 1000


@pytest.mark.parametrize("stage", ["", "-2-vectors"])
def test_an_interrupted_search_ends_alike(grown, tmp_path, stage):
    """As a killed run leaves it: checkpoints up to the middle of one run, none of those after it, no word."""
    whole = grown[0]
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("*"):
        later = path.name.startswith(("checkpoints-", "losses-")) and (not stage or stage not in path.name)
        if later or path.name == WORD:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    next((tmp_path / f"checkpoints{stage}").glob("step-000004.*")).unlink()
    done = learn(tmp_path, "--resume")
    assert (tmp_path / WORD).read_bytes() == (whole / WORD).read_bytes()
    assert "lower by" in done.stdout


def test_neither_a_number_nor_auto(tmp_path):
    for wrong in ("0", "-1", "many", "1.5"):
        done = script_inside("train.py", "--vectors", wrong, "--output", tmp_path, check=False)
        assert done.returncode == 2
        assert re.fullmatch(r"error: argument --vectors: .*\n", done.stderr), done.stderr
