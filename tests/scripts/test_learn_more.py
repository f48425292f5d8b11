"""train.py --learn lora, word+lora and dreambooth: what they write, what samples with it, resuming, bad input."""

import csv
import re

import numpy as np
import pytest
import torch
from PIL import Image
from running import script_inside
from safetensors.torch import load_file

import minti

LITTLE = ("--sample-steps", 1, "--columns", 1, "--prompts", "a {}", "--quiet")
SHORT = ("--steps", 3, "--max-steps", 3, "--batch-size", 4, "--num-class-images", 3, *LITTLE)
LEARNED = {
    "lora": {"lora.safetensors"},
    "word+lora": {"lora.safetensors", "learned_embeds.safetensors", "checkpoints-word", "losses-word.csv"},
    "dreambooth": {"model"},
}
ALWAYS = {"page.png", "curves.png", "losses.csv", "checkpoints", "class-pictures"}


@pytest.mark.parametrize("learn", LEARNED)
def test_what_is_learned_is_written_and_sampled(tmp_path, learn):
    folder = tmp_path / "out"
    done = script_inside("train.py", "--learn", learn, *SHORT, "--output", folder)
    assert {path.name for path in folder.iterdir()} == ALWAYS | LEARNED[learn]
    assert [row["step"] for row in csv.DictReader((folder / "losses.csv").open(encoding="utf-8"))] == ["1", "2", "3"]
    subject = "<concept>" if learn == "word+lora" else "sks toy"
    assert f"learned {subject} in 3 steps" in done.stdout
    assert Image.open(folder / "page.png").height > 4 * 64  # training images, the subject, a prompt before and after
    drawn = ["--model", folder / "model"] if learn == "dreambooth" else ["--lora", folder / "lora.safetensors"]
    drawn += ["--embedding", folder / "learned_embeds.safetensors"] if learn == "word+lora" else []
    script_inside("sample.py", subject, *drawn, "--steps", 2, "--num-images", 1, "--output", tmp_path / "drawn")
    kind = ["--known", subject] if learn != "word+lora" else ["--embedding", folder / "learned_embeds.safetensors"]
    given = [argument for argument in drawn if argument != "--embedding" and "embeds" not in str(argument)]
    images = ("--images", "examples/concepts/red-diamond-pink-belt")
    few = ("--samples", 1, "--steps", 2, "--sections", "words", "--templates", "a {}")
    script_inside("evaluate.py", *kind, *images, *given, *few, "--output", tmp_path / "report")
    assert (tmp_path / "report" / "report.html").is_file()


def test_a_run_is_resumed(tmp_path):
    """Made longer: the same as one that was as long from the beginning; the folder that stood there is put aside."""
    for folder, steps in (("whole", [5]), ("parts", [3, 5])):
        for i, count in enumerate(steps):
            again = ("--resume",) if i else ()
            options = ("--learn", "dreambooth", "--steps", count, *SHORT[2:], *again, "--output", tmp_path / folder)
            script_inside("train.py", *options)
    name = "model/unet/diffusion_pytorch_model.safetensors"
    ours, theirs = (load_file(tmp_path / folder / name) for folder in ("whole", "parts"))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert (tmp_path / "parts" / "model-before").is_dir()


def test_a_refused_run_costs_nothing(tmp_path):
    """Of what the run before has left."""
    model, options = tmp_path / "model/unet/diffusion_pytorch_model.safetensors", ("--learn", "dreambooth", *SHORT)
    script_inside("train.py", *options, "--output", tmp_path)
    before = model.read_bytes()
    done = script_inside("train.py", *options, "--resume", "--seed", 5, "--output", tmp_path, check=False)
    assert "the checkpoint is of another run: " in done.stderr
    assert model.read_bytes() == before


def folder_of_images(folder, mode="RGBA", captions=2):
    folder.mkdir()
    for i in range(2):
        pixels = np.full((64, 64, 4), 255, dtype=np.uint8)
        Image.fromarray(pixels, "RGBA").convert(mode).save(folder / f"{i}.png")
    for i in range(captions):
        (folder / f"{i}.txt").write_text("a {}", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--learn lora --class-prompt cat", "expected one that names the class, 'toy'"),
        ("--learn lora --initializer auto", "--initializer names the class here, such as toy"),
        ("--learn word+lora --initializer random", "a LoRA needs to know the class"),
        ("--learn word+lora --vectors auto", "--vectors auto goes with --learn word alone"),
        ("--learn dreambooth --num-class-images 0", "set class_pictures, or prior_weight = 0"),
        ("--learn lora --rank 0", "0 is not from 1"),
        ("--learn dreambooth --class-images nowhere", "nowhere: no such folder"),
        ("--images {pictures} --captions", r"1\.txt cannot be read"),
        ("--images {pictures} --masked", "image 0 has no alpha channel"),
        ("--learn word+lora --max-row-norm 0 --model nowhere", "max_row_norm = 0"),
        ("--huber 0", "huber = 0.0; expected a number from"),
        ("--min-snr -1", "min_snr = -1.0; expected a number from"),
        ("--min-snr 5 --variational", "variational and min_snr are both weights"),
    ],
)
def test_bad_input_is_one_line(tmp_path, args, message):
    pictures = folder_of_images(tmp_path / "pictures", "RGB", captions=1)
    options = args.format(pictures=pictures).split()
    done = script_inside("train.py", *options, "--output", tmp_path / "out", "--quiet", check=False)
    assert done.returncode in (1, 2)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert re.search(message, lines[0])


def test_masks_and_captions_from_the_command_line(tmp_path):
    pictures = folder_of_images(tmp_path / "pictures")
    options = ("--captions", "--masked", "--min-snr", 5, "--huber", 0.5, "--steps", 1, "--batch-size", 1)
    done = script_inside("train.py", "--images", pictures, *options, *LITTLE, "--output", tmp_path / "out", check=False)
    assert "never lower" in done.stderr or (tmp_path / "out/learned_embeds.safetensors").is_file()
    facts = minti.load_checkpoint(tmp_path / "out/checkpoints").identity
    assert facts["captions"] == ["a {}", "a {}"]
    assert (facts["masked"], facts["min_snr"], facts["huber"]) == (True, 5.0, 0.5)


def test_captions_without_the_word(tmp_path):
    """The run is told of, and claims nothing of the word."""
    pictures = folder_of_images(tmp_path / "pictures")
    for path in pictures.glob("*.txt"):
        path.write_text("a red star", encoding="utf-8")
    options = ("--learn", "lora", "--captions", "--prior-weight", 0, "--steps", 1, "--batch-size", 1, *LITTLE)
    done = script_inside("train.py", "--images", pictures, *options, "--output", tmp_path / "out")
    assert "warning: no caption says sks toy" in done.stderr
    assert "learned from the captions in 1 steps" in done.stdout
    assert "learned sks toy" not in done.stdout
