"""The cascade on the toybox, and restoration without training: their degradations, networks and commands."""

import math

import numpy as np
import pytest
import torch
from helpers import seeded
from running import script_inside

import minti
import world
from held_out import painted, random_scenes
from painting import draw
from restore import SIGMA, as_image, blurred, grey
from super_resolution import psnr
from train_super_resolution import base_model, reduced

FAST = pytest.mark.fast


@FAST
def test_the_blur_is_a_gaussian():
    """A point becomes the density of N(0, σ²) in both directions, and what is even stays as it is."""
    point = torch.zeros(1, 3, 64, 64)
    point[0, 1, 32, 32] = 1
    spread = blurred(point)
    assert spread[0, [0, 2]].abs().max() == 0
    for dy, dx in ((0, 0), (3, 0), (2, 4)):
        expected = math.exp(-(dx**2 + dy**2) / (2 * SIGMA**2)) / (2 * math.pi * SIGMA**2)
        assert spread[0, 1, 32 + dy, 32 + dx].item() == pytest.approx(expected, rel=0.01)  # the kernel ends at 3 σ
    even = torch.full((1, 3, 64, 64), 0.3)
    torch.testing.assert_close(blurred(even), even)


@FAST
def test_grey_is_the_world_s_own_luminance():
    """As it paints black and white photos: the scene in colour, made grey, but for the grain, which both have."""
    scene = next(scene for scene in random_scenes(50, 5) if scene.style == "black and white")
    photo = world.Scene(scene.toys, scene.size, scene.place, scene.background, "photo")
    colour, colourless = (
        torch.from_numpy(draw(which, np.random.default_rng(0))).permute(2, 0, 1)[None] for which in (photo, scene)
    )
    assert (grey(colour) - colourless[:, :1]).abs().mean() < 1e-3
    assert as_image(grey(colour)).shape == (1, 3, 64, 64)


@FAST
def test_the_signal_to_noise_ratio_of_known_errors():
    image = torch.zeros(2, 3, 8, 8)
    worse = torch.stack([torch.full((3, 8, 8), 0.02), torch.full((3, 8, 8), 0.2)])  # a hundredth and a tenth of 2
    torch.testing.assert_close(psnr(worse, image), torch.tensor([40.0, 20.0]))


@FAST
def test_the_base_is_the_unet_for_pixels(toybox):
    """All but its ends are the toybox's own; it draws images of three channels and 16 pixels."""
    base = base_model(toybox)
    own, kept = toybox.unet.state_dict(), base.unet.state_dict()
    assert {key for key in own if own[key].shape != kept[key].shape or not torch.equal(own[key], kept[key])} == {
        "conv_in.weight",
        "conv_in.bias",
        "conv_out.weight",
        "conv_out.bias",
    }
    options = {"num_inference_steps": 1, "guidance_scale": 1, "output": "latents", "generator": seeded()}
    assert minti.sample(base, ["a red star"], **options).shape == (1, 3, 16, 16)


@FAST
def test_the_low_image_is_the_mean_of_blocks():
    image = painted(random_scenes(1, 3), 3)
    low = reduced(image)
    assert low.shape == (1, 3, 16, 16)
    torch.testing.assert_close(low[0, :, 2, 5], image[0, :, 8:12, 20:24].mean(dim=(1, 2)))


def test_the_cascade_s_command(tmp_path):
    """Networks of one step are trained where there are none, and are not trained again."""
    networks = ("--networks", tmp_path / "networks", "--training-steps", 1, "--training-images", 50)
    options = (*networks, "--count", 16, "--steps", 2, "--levels", 100, "--output", tmp_path / "table", "--quiet")
    said = script_inside("toybox/super_resolution.py", *options).stdout
    assert said.count("wrote") == 4
    assert len([line for line in said.splitlines() if line.startswith("| ")]) == 1 + 3 + 2 * 3
    assert {path.name for path in (tmp_path / "table").iterdir()} == {"super_resolution.csv", "true.png", "drawn.png"}
    assert "step 1" not in script_inside("toybox/train_super_resolution.py", "--output", tmp_path / "networks").stdout


def test_restoration_s_command(tmp_path):
    """With the looks named, guidance by a grey image brings its shape and place: nearer to A(x) than without."""
    options = ("--by", "grey", "--count", 2, "--steps", 8, "--output", tmp_path, "--quiet")
    ways = ("looks named, without guidance", "looks named, guided from noise")
    said = script_inside("toybox/restore.py", *options, "--ways", *ways).stdout
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in said.splitlines() if line[:3] == "| g"]
    assert [row[1] for row in rows] == ["as it is", *ways]
    near = [float(row[3].split("±")[0]) for row in rows]
    assert near[0] == 99 and near[2] > near[1]
    assert (tmp_path / "restore.png").is_file()
