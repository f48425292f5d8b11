"""`train.py --directional`, `--starts`, `--by-layer`, and what `sample.py` makes of a table; refused combinations."""

import re
import shutil

import pytest
import torch
from PIL import ImageChops
from PIL.Image import open as open_image
from running import script_inside
from safetensors.torch import load_file

import minti

FEW = ("--steps", 4, "--checkpoint-every", 2, "--sample-steps", 1, "--columns", 1, "--prompts", "a {}", "--quiet")
WORD, TABLE = "learned_embeds.safetensors", "vector_table.safetensors"


def learn(folder, *more, check=True):
    return script_inside("train.py", *FEW, "--output", folder, *more, check=check)


def test_a_directional_word_is_as_long_as_the_vocabulary_s(tmp_path, toybox):
    learn(tmp_path, "--directional", "--context-weight", "0.01")
    (vectors,) = load_file(tmp_path / WORD).values()
    mean = minti.TrainingWrapper(toybox, minti.TextualInversionConfig()).vocabulary_norm
    torch.testing.assert_close(vectors.norm(dim=1), torch.tensor([mean]), rtol=1e-4, atol=0)


def test_several_starts_keep_the_best_also_after_an_interruption(tmp_path):
    done = learn(tmp_path / "whole", "--starts", 2)
    losses = [float(loss) for loss in re.findall(r"^seed \d: loss ([\d.]+)", done.stdout, re.M)]
    assert len(losses) == 2
    assert ("not kept" in done.stdout) == (losses[1] >= losses[0])
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    (tmp_path / "again" / WORD).unlink()
    (tmp_path / "again" / "checkpoints-seed-1" / "step-000004.pt").unlink()
    learn(tmp_path / "again", "--starts", 2, "--resume")
    assert (tmp_path / "again" / WORD).read_bytes() == (tmp_path / "whole" / WORD).read_bytes()


def test_a_table_is_learned_written_and_drawn_with(tmp_path, toybox):
    """With it the image is another than with the mean of its vectors; an equal table gives the same image."""
    learn(tmp_path, "--by-layer", "--timestep-ranges", 2, "--learning-rate", "0.05")
    (entries,) = load_file(tmp_path / TABLE).values()
    assert entries.shape == (4, 2, 1, 128)
    (mean,) = load_file(tmp_path / WORD).values()
    torch.testing.assert_close(entries.mean(dim=(0, 1)), mean)
    options = ("a photo of a <concept>", "--num-images", 1, "--steps", 3, "--quiet", "--output")
    script_inside("sample.py", *options, tmp_path / "table", "--vector-table", tmp_path / TABLE)
    script_inside("sample.py", *options, tmp_path / "mean", "--embedding", tmp_path / WORD)
    with_table, with_mean = (open_image(tmp_path / name / "grid.png") for name in ("table", "mean"))
    assert ImageChops.difference(with_table, with_mean).getbbox()


def test_of_several_tables_the_best_is_written(tmp_path):
    """The table and the word beside it are those of the run with the least loss, as it is learned alone."""
    done = learn(tmp_path, "--starts", 3, "--timestep-ranges", 2, "--learning-rate", "0.05", "--seed", 3)
    (entries,), (mean,) = (load_file(tmp_path / name).values() for name in (TABLE, WORD))
    torch.testing.assert_close(entries.mean(dim=(0, 1)), mean)
    losses = [float(loss) for loss in re.findall(r"^seed \d: loss ([\d.]+)", done.stdout, re.M)]
    assert len(losses) == 3
    best = 3 + losses.index(min(losses))
    alone = tmp_path / "alone"
    learn(alone, "--timestep-ranges", 2, "--learning-rate", "0.05", "--seed", best)
    assert (alone / TABLE).read_bytes() == (tmp_path / TABLE).read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--context-prompts red", "--context-weight"),
        ("--learn lora --directional", "--directional"),
        ("--learn word+lora --by-layer", "--by-layer"),
        ("--starts 2 --vectors auto", "--starts"),
        ("--starts 2 --learn lora", "--starts"),
        ("--kappa 0.1", "it needs directional"),
        ("--context-weight 0.1 --context-prompts red", "has no {}"),
        ("--by-layer --row-update restore", "need new_rows"),
        ("--timestep-ranges 0", "--timestep-ranges"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(tmp_path, options, message):
    done = learn(tmp_path / "new", *options.split(), check=False)
    assert done.returncode and message in done.stderr.splitlines()[-1], done.stderr
    assert not list(tmp_path.glob("new/*.safetensors"))
