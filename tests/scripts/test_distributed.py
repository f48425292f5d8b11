"""Several processes (gloo, on the CPU) learn and sample what one does."""

import sys

import pytest
import torch
from PIL import Image
from running import ROOT, TORCHRUN, script
from safetensors.torch import load_file

ALONE = (sys.executable,)


def learn(by, folder, *args):
    options = ("--steps", 20, "--sample-steps", 1, "--columns", 2, "--batch-size", 1, "--prompts", "a {}")
    done = script("train.py", "--output", folder, *options, *args, by=by)
    return (
        load_file(folder / "learned_embeds.safetensors")["<concept>"],
        done.stdout,
        (folder / "losses.csv").read_text(encoding="utf-8"),
    )


def test_two_processes_learn_what_one_learns_with_accumulation(tiny_folder, tmp_path):
    """Two ranks with one batch each, and one process that accumulates two, given the same draws: equal to 1e-5."""
    model = ("--model", tiny_folder, "--initializer", "toy")
    together, printed, losses = learn(TORCHRUN, tmp_path / "two", *model)
    alone, _, expected = learn(ALONE, tmp_path / "one", *model, "--gradient-accumulation", 2)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5 * alone.abs().max().item())
    assert printed.count("learned <concept>") == 1
    column = lambda text: [float(line.split(",")[1]) for line in text.splitlines()[1:]]  # noqa: E731
    assert column(losses) == pytest.approx(column(expected), rel=1e-4)


def test_two_processes_choose_what_one_chooses(tmp_path):
    """The initializer and the number of vectors: every rank decides alike, or they would wait for each other."""
    choices = ("--vectors", "auto", "--initializer", "auto", "--steps", 3, "--columns", 1)
    together, printed, _ = learn(TORCHRUN, tmp_path / "two", *choices)
    alone, expected, _ = learn(ALONE, tmp_path / "one", *choices, "--gradient-accumulation", 2)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4 * alone.abs().max().item())
    begun = [text.split("initializer ")[1].split(";")[0] for text in (printed, expected)]
    assert begun[0] == begun[1]
    assert [line.split()[-1] for line in printed.splitlines() if "lower by" in line] == [
        line.split()[-1] for line in expected.splitlines() if "lower by" in line
    ]


def test_two_processes_sample_the_same_images(tmp_path):
    args = ("a red star", "a sketch of a heart", "--num-images", 3, "--steps", 3, "--output")
    script("sample.py", *args, tmp_path / "two", by=TORCHRUN)
    script("sample.py", *args, tmp_path / "one")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    assert len(names) == 7
    for name in names:
        a, b = (Image.open(tmp_path / which / name).tobytes() for which in ("one", "two"))
        assert max(abs(x - y) for x, y in zip(a, b, strict=True)) <= 1  # other batches, other rounding


def test_a_rank_that_dies_ends_the_run_and_the_word_is_whole(tmp_path):
    """Rank 1 is killed in the middle of the run."""
    (tmp_path / "dying.py").write_text(
        "import os, sys, minti.training as training\n"
        f"sys.path.insert(0, {str(ROOT / 'examples')!r})\n"
        "step = training.Trainer.step\n"
        "calls = []\n"
        "def dying(*args):\n"
        "    calls.append(1)\n"
        "    if os.environ['RANK'] == '1' and len(calls) == 60:\n"
        "        os._exit(9)\n"
        "    return step(*args)\n"
        "training.Trainer.step = dying\n"
        "import train\n"
        "train.run(train.main)\n",
        encoding="utf-8",
    )
    done = script(tmp_path / "dying.py", "--steps", 500, "--output", tmp_path / "out", check=False, by=TORCHRUN)
    assert done.returncode != 0
    assert "error: rank 0 stops" in done.stderr or "exitcode  : 9" in done.stderr
    word = load_file(tmp_path / "out/learned_embeds.safetensors")["<concept>"]
    assert torch.isfinite(word).all()
