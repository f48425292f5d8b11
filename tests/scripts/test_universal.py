"""The losses of universal guidance on painted images, whose outline, place and style are known."""

import pytest
import torch
from helpers import seeded
from running import script_inside

import minti
from held_out import painted, random_scenes
from outlines import drawn_masks, masks
from toy_clip import load_toy_clip
from universal import SCENES, box_of, outline_loss, place_loss, segmented, style_loss

pytestmark = pytest.mark.fast


def test_a_sharp_segmentation_is_the_hard_one():
    images = painted([s for s in random_scenes(20, 0, 91, pair_rate=0) if s.style == "photo"], 0, 92)
    sharp, hard = segmented(images, sharpness=1e6), drawn_masks(images)
    assert (sharp.round() == hard).float().mean() > 0.999
    assert hard.mean() > 0.05


def test_the_outline_s_loss_is_least_for_the_painted_outline():
    """Cross-entropy by its definition; a true image has less of it than one moved by eight pixels."""
    image, wanted = painted([SCENES["outline"]], 0, 81), masks([SCENES["outline"]], [(0, 81, 0)])
    moved = image.roll(8, dims=-1)
    loss = outline_loss(wanted)
    assert loss(image) < 0.3 * loss(moved)
    found = segmented(moved).clamp(1e-4, 1 - 1e-4)
    expected = -(wanted * found.log() + (1 - wanted) * (1 - found).log()).mean()
    torch.testing.assert_close(loss(moved)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("place", ["left", "right", "top"])
def test_the_place_s_loss_is_the_part_outside(place):
    """A square of 16 by 16 pixels, a quarter of which is in the left half, and half in the upper one."""
    image = -torch.ones(1, 3, 64, 64)
    image[:, 0, 24:40, 28:44] = 1.0
    inside = {"left": 1 / 4, "right": 3 / 4, "top": 1 / 2}[place]
    assert place_loss(box_of(place))(image).item() == pytest.approx(1 - inside, abs=0.01)


def test_the_style_s_loss_is_zero_for_the_image_itself(toybox):
    class Given:
        model, clip = toybox, load_toy_clip(toybox, minti.TOYBOX)

    image = painted([SCENES["style"]], 0, 82)
    noise = torch.randn(image.shape, generator=seeded())
    itself, other = style_loss(Given, image)(torch.cat([image, noise]))
    assert itself.item() == pytest.approx(0, abs=1e-5)
    assert other > 0.2


def test_the_command(tmp_path):
    """Two steps by one loss already move the toys to the left."""
    options = ("--by", "place", "--count", 2, "--steps", 6, "--output", tmp_path)
    said = script_inside("toybox/universal.py", *options).stdout
    shares = {
        line.split("|")[1].strip(): float(line.split("|")[3])
        for line in said.splitlines()
        if line[:3] in ("| n", "| p")
    }
    assert shares["place"] > shares["nothing"]
    assert (tmp_path / "universal.png").is_file()
