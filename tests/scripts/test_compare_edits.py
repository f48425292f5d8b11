"""The tables of edits: what is painted is what is measured, and each picture is edited towards its own colour."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from running import script_inside

import compare_edits
import minti
import painting
from held_out import Task, task
from measure import load_judge
from world import COLOURS, Scene, Toy

SCENE = Scene((Toy("star", "belt", "red", "white"),), "big", "in the middle", "grey", "photo")


def painted(scene):
    return torch.from_numpy(painting.draw(scene, np.random.default_rng(0))).permute(2, 0, 1)[None] * 2 - 1


@pytest.mark.parametrize(
    ("toy", "place", "changed", "kept"),
    [
        ({}, "in the middle", 0, 1),
        ({"main": "green"}, "in the middle", 1, 1),
        ({"main": "blue"}, "in the middle", 0, 1),
        ({"main": "green", "shape": "heart"}, "in the middle", 1, 0),
        ({"main": "green"}, "on the left", 1, 0),
    ],
)
def test_what_is_painted_is_measured(toy, place, changed, kept):
    """A picture that should become green, and one with the same grain that did, did not, or became something else."""
    after = replace(SCENE, toys=(replace(SCENE.toys[0], **toy),), place=place)
    wanted = Task(painted(SCENE), torch.empty(0), torch.empty(0), [SCENE], ["green"])
    [row] = compare_edits.judged(load_judge(minti.TOYBOX), wanted, wanted.pictures, painted(after))
    assert (row["changed"], row["kept"], row["both"]) == (changed, kept, changed and kept)
    assert row["moved"] < 1  # the toy covers less than half of the picture


def test_each_counterfactual_goes_towards_its_own_colour(monkeypatch):
    def counterfactual(model, latents, prompts, wish, scale, hold, steps):
        assert not [prompt for prompt in prompts if "{" in prompt or wish in prompt.split()]
        return torch.full((len(latents), 3, 64, 64), float(list(COLOURS).index(wish)))

    monkeypatch.setattr(compare_edits, "counterfactual", counterfactual)
    with torch.no_grad():
        scenes = task(minti.StableDiffusion.from_pretrained(), range(6))
    before, after = compare_edits.towards(None, scenes, 1, 1, num_inference_steps=2)
    assert before is scenes.pictures
    assert [list(COLOURS)[int(picture[0, 0, 0])] for picture in after] == scenes.colours


def test_what_is_mended_comes_back(tmp_path):
    """Of one picture, all of it named, in 15 steps without guidance: an iteration or two make the difference."""
    script_inside("toybox/compare_edits.py", "--only", "inversion", "--count", 1, "--steps", 15, "--output", tmp_path)
    once, mended, *_ = csv.DictReader((tmp_path / "inversion.csv").open(encoding="utf-8"))
    assert (once["named"], once["iterations"], mended["iterations"]) == ("all", "0", "2")
    assert float(mended["guidance 1"]) < 4 < float(once["guidance 1"])
    assert float(mended["guidance 1"]) < float(mended["guidance 5"])


def test_every_way_is_drawn(tmp_path):
    options = ("--only", "edits", "--count", 2, "--steps", 2, "--output", tmp_path)
    said = script_inside("toybox/compare_edits.py", *options).stdout
    assert said.count("\n| ") == len(compare_edits.WAYS)
    assert (tmp_path / "edits.png").is_file()
