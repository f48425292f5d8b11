"""The command that guides: what it measures is right on painted pictures, and its loss is what the judge says."""

import numpy as np
import pytest
import torch
from PIL import Image

import minti
import painting
from guide import judge_loss, measure
from measure import load_judge
from minti.images import to_pixels
from toy_clip import load_toy_clip
from world import Scene, Toy


@pytest.fixture(scope="module")
def toybox():
    return minti.StableDiffusion.from_pretrained()


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
