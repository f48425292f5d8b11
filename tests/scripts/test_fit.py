"""train.py with images of any shape, and going on from a learned word."""

import numpy as np
import pytest
import torch
from helpers import seeded
from PIL import Image
from running import script_inside
from safetensors.torch import load_file, save_file

import minti

pytestmark = pytest.mark.fast
FEW = ("--sample-steps", 2, "--columns", 2, "--prompts", "a {}", "--quiet", "--dtype", "float32", "--device", "cpu")


@pytest.fixture
def train(tiny_folder, tmp_path):
    """Runs train.py on the small model, two steps long."""

    def run(*args, check=True):
        model = ("--model", tiny_folder, "--output", tmp_path / "out", "--templates", "object", "--steps", 2)
        return script_inside("train.py", *FEW, *model, *args, check=check)

    return run


@pytest.fixture
def images(tmp_path):
    """Three images: 48 x 16, 16 x 16 and 16 x 19 pixels."""
    (tmp_path / "images").mkdir()
    for name, width, height in (("wide", 48, 16), ("square", 16, 16), ("tall", 16, 19)):
        values = np.random.default_rng(width + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / f"images/{name}.png")
    return tmp_path / "images"


def test_what_is_cropped_is_told(train, images, tmp_path):
    """Where it is more than a fifth: the share is 1 - 16 / 48; of the tall image it is 1 - 16 / 19."""
    (images / "notes.md").write_text("", encoding="utf-8")
    done = train("--images", images, "--initializer", "toy", check=False)
    cut = f"{images}: more than a fifth is cut off, beside the middle, of wide.png (67%); crop them yourself"
    assert [line for line in done.stderr.splitlines() if "cut off" in line] == [
        f"warning: {cut}; train.py --fit pad keeps all of them, --fit bucket most"
    ]
    assert done.stderr.count("notes.md") == 1
    assert "cut off" not in train("--images", images, "--initializer", "toy", "--fit", "pad", check=False).stderr


@pytest.mark.parametrize("options", [("pad",), ("bucket", "--batch-size", 1)])
def test_a_fit_is_a_setting_of_the_run(train, images, tmp_path, options):
    done = train("--images", images, "--initializer", "toy", "--fit", *options, "--learning-rate", 0.001, check=False)
    assert not done.stderr or "never lower" in done.stderr
    assert minti.load_checkpoint(tmp_path / "out/checkpoints").identity["fit"] == options[0]
    again = train("--images", images, "--initializer", "toy", "--resume", "--learning-rate", 0.001, check=False)
    assert f"fit was {options[0]} and is not set" in again.stderr


def test_buckets_take_one_image_at_a_time(train, images):
    done = train("--images", images, "--fit", "bucket", "--batch-size", 2, "--initializer", "toy", check=False)
    assert done.stderr.count("\n") == 1
    assert "gives images of 2 shapes, which cannot share a batch; set batch_size (--batch-size) to 1" in done.stderr


def test_going_on_from_a_file(train, images, tmp_path):
    """A word is on the page as it was and as it is; and --resume takes the same file."""
    file = tmp_path / "word.safetensors"
    save_file({"<rex>": 3 * torch.randn(1, 48, generator=seeded())}, file)
    args = ("--images", images, "--fit", "pad", "--initializer", file, "--learning-rate", 1e-4, "--seed", 1)
    done = train(*args)
    learned = load_file(tmp_path / "out/learned_embeds.safetensors")["<concept>"]
    assert 0 < (learned - load_file(file)["<rex>"]).abs().max() <= 2.1e-4  # two steps of AdamW
    assert Image.open(tmp_path / "out/page.png").height > 4 * 16
    assert "learned <concept> in 2 steps" in done.stdout
    assert "there is nothing to resume" not in train(*args, "--resume").stdout
    save_file({"<rex>": torch.randn(1, 48, generator=seeded(5))}, file)
    assert "of another run: initializer_token was vectors (1, 48), " in train(*args, "--resume", check=False).stderr


@pytest.mark.parametrize(
    ("words", "args", "message"),
    [
        ({"<a>": 48, "<b>": 48}, (), "holds 2 words (<a>, <b>), and none is called <concept>; give the new word"),
        ({"<a>": 768}, (), "has shape (1, 768), but the words of this model are 48 numbers wide"),
        ({}, (), "no such file of learned words"),
        ({"<a>": 48}, ("--learn", "word+lora"), "--initializer FILE is for --learn word alone"),
        ({"<a>": 48}, ("--output", "{folder}"), "the learned word would replace "),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(train, images, tmp_path, words, args, message):
    file = tmp_path / "learned_embeds.safetensors"
    if words:
        save_file({word: torch.randn(1, width, generator=seeded()) for word, width in words.items()}, file)
    args = [arg.format(folder=tmp_path) for arg in args]
    done = train("--images", images, "--initializer", file, "--fit", "pad", *args, check=False)
    assert done.returncode in (1, 2)
    assert [message in line for line in done.stderr.splitlines()] == [True], done.stderr
    assert not (tmp_path / "out/learned_embeds.safetensors").exists()
