"""`--fast` and `--tiny-decoder` of the scripts, and the training of the toybox's tiny decoder."""

import numpy as np
import pytest
import torch
from PIL import Image
from running import script_inside
from safetensors.torch import load_file

import minti
from train_tiny_decoder import psnr

TINY = minti.TOYBOX / "tiny_decoder"
SAMPLE = ("sample.py", "a red star", "--steps", 2, "--sampler", "ddim", "--num-images", 2, "--quiet")


def drawn(folder, *options, check=True):
    done = script_inside(*SAMPLE, *options, "--output", folder, check=check)
    return np.asarray(Image.open(folder / "00-00.png")).astype(int) if check else done


def test_fast_samples_the_same(tmp_path):
    plain, fast = drawn(tmp_path / "plain"), drawn(tmp_path / "fast", "--fast")
    assert np.abs(plain - fast).max() <= 1  # grey levels


def test_fast_says_where_it_does_nothing(tmp_path):
    done = script_inside(*SAMPLE, "--fast", "--dtype", "bfloat16", "--output", tmp_path)
    assert "--fast is for float32 on the cpu, and changes nothing for torch.bfloat16 on cpu" in done.stderr


def test_fast_learns_the_same_word(tmp_path):
    options = ("--steps", 4, "--sample-steps", 2, "--columns", 1, "--quiet")
    for name, fast in (("plain", ()), ("fast", ("--fast",))):
        script_inside("train.py", *options, *fast, "--output", tmp_path / name)
    plain, fast = (load_file(tmp_path / n / "learned_embeds.safetensors")["<concept>"] for n in ("plain", "fast"))
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-3 * plain.std().item())


def test_the_toybox_s_tiny_decoder_decodes(tmp_path):
    steps = ("--steps", 12, "--sampler", "dpm-solver++")  # of an image that looks like those it has learned from
    plain, tiny = drawn(tmp_path / "plain", *steps), drawn(tmp_path / "tiny", *steps, "--tiny-decoder", TINY)
    assert 0 < np.abs(plain - tiny).mean() < 8  # grey levels


def test_another_model_s_is_refused(tmp_path):
    (tmp_path / "wrong").mkdir()
    for wrong, told in (
        (minti.TOYBOX / "vae", "is no tiny decoder; expected a tensor"),
        (tmp_path / "wrong", "is missing; a tiny decoder is diffusers' folder"),
    ):
        done = drawn(tmp_path / "out", "--tiny-decoder", wrong, check=False)
        assert done.returncode == 1 and told in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_psnr():
    """An error of a tenth everywhere, of values that span 2: 20 log10(20) decibels."""
    image = torch.zeros(2, 3, 4, 4)
    assert psnr(image + 0.1, image) == pytest.approx(20 * np.log10(20), rel=1e-5)


def test_training_one(tmp_path):
    options = (
        "--steps",
        3,
        "--batch-size",
        2,
        "--channels",
        8,
        "--pictures",
        20,
        "--look-at",
        10,
        "--output",
        tmp_path,
    )
    printed = script_inside("toybox/train_tiny_decoder.py", *options).stdout
    assert "| the tiny decoder |" in printed and "PSNR: the VAE" in printed
    config = minti.adapters.tiny_decoder.TinyVAE.from_pretrained(tmp_path, minti.StableDiffusion.from_pretrained())
    assert config.decoder.config.block_out_channels == (8, 8, 8)


def test_the_bundled_one_keeps_what_the_judge_sees(tmp_path):
    """On 100 unseen images; the README's figures are of 960."""
    printed = script_inside(
        "toybox/train_tiny_decoder.py", "--only-look", "--look-at", 100, "--output", tmp_path
    ).stdout
    rows = {line.split(" | ")[0].strip("| "): line.strip(" |").split(" | ")[1:] for line in printed.splitlines()}
    theirs, ours = ([float(cell) for cell in rows[name]] for name in ("the VAE's decoder", "the tiny decoder"))
    assert all(mine >= other - 5 for mine, other in zip(ours, theirs))
