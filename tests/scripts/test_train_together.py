"""train_together.py: the words of a run, which is the library's; going on after an interruption; what is refused."""

import shutil

import pytest
import torch
from PIL import Image
from running import ROOT, script_inside
from safetensors.torch import load_file

import minti
import world
from draw_concepts import CAPTIONS, pictures_together
from minti.formats.image_files import open_folder
from minti.images import to_pixels
from minti.personalization.augmented_images import open_captions
from minti.personalization.together import learn_together

IMAGES, WORDS = ROOT / "examples" / "together", "learned_embeds.safetensors"
OPTIONS = ("--steps", 2, "--batch-size", 1, "--checkpoint-every", 1, "--sample-steps", 1, "--columns", 1, "--quiet")
DIRECT = ("--no-directional", "--batch-size", 8, "--steps", 3)  # falls at once


def learn(folder, *more, check=True):
    return script_inside("train_together.py", *OPTIONS, "--output", folder, *more, check=check)


def test_the_bundled_images_are_two_held_out_toys():
    images, captions = open_folder(IMAGES), open_captions(IMAGES)
    assert captions == [caption for caption in CAPTIONS for _ in range(5)]
    for image, (picture, _) in zip(images, pictures_together(*world.TEST_TOYS[:2]), strict=True):
        expected = torch.from_numpy(picture).permute(2, 0, 1) * 2 - 1
        assert (to_pixels(image, 64) - expected).abs().max() <= 1 / 255 + 1e-6


def test_the_words_are_those_of_learn_together(tmp_path):
    """With directional words, 300 steps and a cosine schedule by default; here with other settings."""
    done = learn(tmp_path, "--words", "<first>=moon", "<second>", "--no-directional", "--lr-schedule", "constant")
    assert "learned <first> and <second> in 2 steps" in done.stdout
    model = minti.StableDiffusion.from_pretrained()
    words = [
        minti.TrainingWrapper(
            model,
            minti.TextualInversionConfig(placeholder_token=word, initializer_token=known, steps=2, batch_size=1),
        )
        for word, known in (("<first>", "moon"), ("<second>", "toy"))
    ]
    assert len(list(minti.monitored(learn_together(words, open_folder(IMAGES), open_captions(IMAGES))))) == 2
    found = load_file(tmp_path / WORDS)
    assert set(found) == {"<first>", "<second>"}
    for word in words:
        assert torch.equal(found[word.subject], word.embedding.values)
    assert Image.open(tmp_path / "page.png").height > 6 * 128


def test_an_interrupted_run_ends_alike(tmp_path):
    learn(tmp_path / "whole", *DIRECT)
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    (tmp_path / "half" / WORDS).unlink()
    next((tmp_path / "half" / "checkpoints").glob("step-000003.*")).unlink()
    learn(tmp_path / "half", *DIRECT, "--resume")
    assert (tmp_path / "half" / WORDS).read_bytes() == (tmp_path / "whole" / WORDS).read_bytes()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--words", "<first>", "<third>"], "no caption says <third>"),
        (["--words", "<first>", "<first>=moon"], "<first>, <first>: two of the words have the same name"),
        (["--by-layer"], "<first> and <second>: only one of several words can have vectors by layer or timestep"),
        (["--row-update", "restore"], "several words learn in one model, and by row_update = 'new_rows' only"),
        (["--images", ROOT / "examples" / "concepts" / "red-diamond-pink-belt"], "every image needs a caption"),
    ],
    ids=["a word without caption", "twice", "tables", "E4's recipe", "no captions"],
)
def test_what_is_refused(tmp_path, more, message):
    done = learn(tmp_path, *([] if "--row-update" not in more else ["--no-directional"]), *more, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert message in done.stderr
    assert not (tmp_path / WORDS).exists()
