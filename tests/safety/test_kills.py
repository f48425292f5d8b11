"""SIGKILL, at any moment, inside a save too; what is resumed ends byte for byte as if nothing had been."""

import random
import time

import pytest
from safetensors.torch import load_file

import minti

LEARNED = "learned_embeds.safetensors"


def whole_or_absent(folder):
    """At no moment is there half of a word, of a table or of a checkpoint."""
    if (folder / LEARNED).exists():
        load_file(folder / LEARNED)
    if (folder / "losses.csv").exists():
        assert (folder / "losses.csv").read_text(encoding="utf-8").endswith("\n")
    if (folder / "checkpoints").exists():
        minti.load_checkpoint(folder / "checkpoints")  # a warning of a damaged one would be an error


def leftovers(folder):
    return [path.name for path in folder.rglob("*.tmp")]


@pytest.mark.filterwarnings("error")
def test_killed_within_a_save_and_resumed(lesson, whole, results, tmp_path):
    """The first checkpoint is written, and not yet on the disk; of the third, half is written."""
    short, killed = lesson(), tmp_path / "killed"
    assert short.run(killed, faults=[("signal_at", "fsync", "step-000002", "SIGKILL")])[0] == -9
    assert leftovers(killed)
    code, process = short.run(killed, "--resume", faults=[("signal_at", "write", "step-000006", "SIGKILL")])
    assert code == -9
    whole_or_absent(killed)
    assert minti.load_checkpoint(killed / "checkpoints").step > 0
    code, process = short.run(killed, "--resume")
    assert (code, process.stderr) == (0, "")
    assert results(killed) == results(whole)
    assert not leftovers(killed)


VARIANTS = [
    ("--gradient-accumulation", 2),
    ("--row-update", "restore", "--vectors", 2, "--lr-schedule", "cosine", "--warmup-steps", 3),
    ("--flip", "--validate-every", 3, "--max-row-norm", 2),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", range(3))
def test_killed_again_and_again(lesson, results, tmp_path, number):
    """Eleven kills in each of three ways to learn: every other at an operation on a file, the others at any time."""
    chance, long = random.Random(number), lesson(*VARIANTS[number])
    began = time.monotonic()
    assert long.run(tmp_path / "whole")[0] == 0
    seconds, expected = time.monotonic() - began, results(tmp_path / "whole")
    kills, runs, folder = 0, 0, tmp_path / "0"
    while kills < 11:
        if kills % 2:
            process = long.start(folder, "--resume", faults=[("killed_at", chance.randint(1, 40))])
        else:
            process = long.start(folder, "--resume", faults=[("slow", 0.005)])
            time.sleep(chance.uniform(0.1, 1) * seconds)
            process.send("SIGKILL")
        code = process.wait()
        assert code in (0, -9), process.stderr
        kills += code == -9
        whole_or_absent(folder)
        if code == 0:
            assert results(folder) == expected
            runs += 1
            folder = tmp_path / str(runs)
    assert long.run(folder, "--resume")[0] == 0
    assert results(folder) == expected
