"""The command that guides: what it measures is right on painted pictures, and its loss is what the judge says."""

import numpy as np
import pytest
import torch
from PIL import Image
from running import script

import minti
import painting
from guide import judge_loss, measure, painted
from measure import load_judge
from minti.images import to_pixels
from noisy_judge import denoised, load_noisy_judge
from toy_clip import load_toy_clip
from world import Scene, Toy


@pytest.fixture(scope="module")
def pictures():
    scenes = [
        Scene((Toy(shape, "belt", main, "white"),), "big", "in the middle", "grey", "photo")
        for main, shape in (("green", "star"), ("green", "heart"), ("red", "star"), ("blue", "moon"))
    ]
    drawn = [painting.draw(scene, np.random.default_rng(i)) for i, scene in enumerate(scenes)]
    return [Image.fromarray((picture * 255).round().astype(np.uint8)) for picture in drawn]


def test_what_is_painted_is_measured(toybox, pictures):
    judge, clip = load_judge(minti.TOYBOX), load_toy_clip(toybox, minti.TOYBOX)
    for wish in ("green", "star"):
        assert measure(judge, clip, pictures, wish) == {"judge": 0.5, "CLIP": 0.5, "photo": 1.0}


def test_the_loss_is_low_where_the_wish_is_painted(toybox, pictures):
    """And its gradient reaches the latents."""
    pixels = torch.stack([to_pixels(picture, 64) for picture in pictures])
    clean = toybox.scale(toybox.vae.encode(pixels).mean.detach()).requires_grad_()
    loss = judge_loss(toybox, load_judge(minti.TOYBOX), "green")(clean)
    assert loss.shape == (4,) and loss[:2].max() < loss[2:].min()
    assert (torch.autograd.grad(loss.sum(), clean)[0].flatten(1).norm(dim=1) > 0).all()


def test_the_noisy_judge_asks_what_the_model_denoises(toybox, pictures):
    """Its answer to green at t = 300 is high where green is painted, and the gradient reaches the noisy latents."""
    pixels = torch.stack([to_pixels(picture, 64) for picture in pictures])
    clean = toybox.scale(toybox.vae.encode(pixels).mean.detach())
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    noisy = toybox.scheduler.add_noise(clean, noise, 300).requires_grad_()
    seen = denoised(toybox)(noisy, 300)
    assert (seen - clean).abs().mean() < 0.5 * (noisy - clean).abs().mean()
    found = load_noisy_judge(minti.TOYBOX).log_probability(seen, 300, {"main_0": "green"})
    assert found[:2].min() > found[2:].max()
    assert (torch.autograd.grad(found.sum(), noisy)[0].flatten(1).norm(dim=1) > 0).all()


def test_painted_pictures_show_the_wish(toybox):
    judge, clip = load_judge(minti.TOYBOX), load_toy_clip(toybox, minti.TOYBOX)
    for wish in ("green", "star"):
        assert min(measure(judge, clip, painted(wish, 8, 0), wish).values()) >= 7 / 8


def test_the_command_with_sets(tmp_path):
    options = (
        "--by",
        "noisy-judge",
        "--through-unet",
        "--want",
        "green",
        "--scales",
        "1",
        "--count",
        "6",
        "--steps",
        "2",
        "--sets",
    )
    said = script("toybox/guide.py", *options, "--output", tmp_path).stdout
    rows = [line.split("|")[2].strip() for line in said.splitlines() if line.startswith("| green")]
    assert rows == ["the prompt alone", "scale 1", "said, guidance 1"]
    assert (tmp_path / "guide.png").is_file() and "recall" in (tmp_path / "guide.csv").read_text(encoding="utf-8")
