"""Counterfactuals: the adversarial picture beside them is what it is called, and the command says how far both are."""

import numpy as np
import pytest
import torch
from running import script

import minti
import painting
from counterfactuals import adversarial, difference, projected
from measure import load_judge
from minti.images import to_pil
from networks import Judge
from world import Scene, Toy

HEART = list(Judge().answers["shape_0"]).index("heart")


@pytest.fixture(scope="module")
def pictures():
    scenes = [
        Scene((Toy(shape, "belt", main, "white"),), "big", "in the middle", "grey", "photo")
        for main, shape in (("green", "star"), ("red", "square"))
    ]
    drawn = [painting.draw(scene, np.random.default_rng(i)) for i, scene in enumerate(scenes)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2) * 2 - 1


def test_an_adversarial_picture_moves_the_judge_and_hardly_a_pixel(pictures):
    judge = load_judge(minti.TOYBOX)
    after = adversarial(judge, pictures, "heart", most=4)
    assert 0 < (after - pictures).abs().max() <= 4 / 127.5 + 1e-6
    before, now = (judge(x)["shape_0"].softmax(dim=1)[:, HEART] for x in (pictures, after))
    assert (now > before).all()


def test_diffusion_projects_an_adversarial_picture_back(toybox, pictures):
    """The attack's probability of a heart falls, and the picture stays one of the same toy; at a strength of almost
    nothing it is only encoded and decoded."""
    judge = load_judge(minti.TOYBOX)
    attacked = adversarial(judge, pictures, "heart", most=8)
    prompts = ["a photo of a green toy", "a photo of a red toy"]
    before, after = (
        judge(x)["shape_0"].softmax(dim=1)[:, HEART] for x in (attacked, projected(toybox, attacked, prompts, 0.3, 20))
    )
    assert before.min() > 0.5 and after.max() < 0.5 * before.min()
    assert (projected(toybox, pictures, prompts, 0.3, 20).clamp(-1, 1) - pictures).abs().mean() < 0.1


def test_the_map_of_the_difference_is_black_where_nothing_changed(pictures):
    moved = pictures.clone()
    moved[:, :, 10:20, 10:20] += torch.where(moved[:, :, 10:20, 10:20] > 0, -0.6, 0.6)
    seen = np.array(to_pil(difference(moved, pictures))[0])
    assert (seen[10:20, 10:20] == 255).all() and seen.astype(int).sum() == 3 * 100 * 255


def test_the_command(tmp_path):
    said = script("toybox/counterfactuals.py", "--count", "2", "--steps", "4", "--output", tmp_path).stdout
    assert "| adversarial |" in said and (tmp_path / "counterfactuals.png").is_file()
