"""A classifier trained on drawn images: prompts that say everything, labels that are kept, replaced or spoiled."""

import numpy as np
import pytest
import torch
from running import script_inside

import minti
import world
from data import scene_of
from held_out import described, painted, random_scenes
from measure import load_judge, verdicts, wanted
from networks import Judge
from stages import train_judge
from train_on_drawn import relabelled, spoiled


@pytest.mark.fast
def test_a_prompt_says_all_of_its_scene():
    """What a prompt names, by the parser of `measure.wanted`, is the scene; toys are said in their order."""
    for scene in random_scenes(60, 101):
        prompt, toys = described(scene), [toy.looks for toy in scene.toys]
        names = {"style": scene.style, "background": scene.background}
        names |= {"count": "two"} if len(toys) == 2 else {"place": scene.place, "size": scene.size}
        if scene.style in world.COLOURLESS:
            del names["background"]
        assert wanted(prompt, len(toys)) == names
        assert [prompt.index(toy) for toy in toys] == sorted(prompt.index(toy) for toy in toys)
        assert f"on a {scene.background} background" in prompt
        assert set(prompt.split()) <= set(world.words())


@pytest.mark.fast
def test_the_judge_s_answers_are_the_labels_of_true_images():
    """In all but a few; what cannot be seen has none before and after."""
    judge, scenes = load_judge(minti.TOYBOX), random_scenes(40, 102)
    labels = [judge.labels(scene) for scene in scenes]
    seen = verdicts(judge, painted(scenes, 103))
    again = [relabelled(judge, *pair) for pair in zip(labels, seen)]
    assert sum(a == b for a, b in zip(labels, again)) >= 38
    for before, after in zip(labels, again):
        assert {name for name, x in before.items() if x < 0} == {name for name, x in after.items() if x < 0}


@pytest.mark.fast
def test_labels_are_spoiled_exactly_where_others_differ_and_evenly():
    judge, rng = Judge(), np.random.default_rng(0)
    labels = {name: 1 if name != "place" else -100 for name in judge.answers}
    like = labels | {"shape_0": 0, "style": 3}
    found = [spoiled(judge, labels, like, rng) for _ in range(2000)]
    for name in judge.answers:
        values = {each[name] for each in found}
        if name in ("shape_0", "style"):
            assert values == set(range(len(judge.answers[name]))) - {1}
        else:
            assert values == {labels[name]}
    counts = np.bincount([each["shape_0"] for each in found], minlength=8)[[0, 2, 3, 4, 5, 6, 7]]
    assert abs(counts - 2000 / 7).max() < 5 * (2000 / 7) ** 0.5


@pytest.mark.slow
def test_given_labels_train_as_the_world_s_own_do(tmp_path):
    images = ((painted([scene_of(i) for i in range(64)], 104) + 1) * 127.5).round().to(torch.uint8)
    found = []
    for i, labels in enumerate((None, [Judge().labels(scene_of(i)) for i in range(64)])):
        torch.manual_seed(0)
        (tmp_path / str(i)).mkdir()
        found.append(train_judge(tmp_path / str(i), images, 3, torch.device("cpu"), labels, half=False).state_dict())
    for name, weights in found[0].items():
        assert torch.equal(weights, found[1][name]), name


@pytest.mark.slow
def test_the_command(tmp_path):
    """The stored judge is right about true images, and nearly about the labels of drawn ones."""
    options = ("--count", 128, "--tests", 40, "--steps", 2, "--ways", "drawn", "--output", tmp_path, "--quiet")
    said = script_inside("toybox/train_on_drawn.py", *options).stdout
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in said.splitlines() if line[:2] == "| "}
    assert min(map(float, rows["(the stored judge)"])) > 95
    assert min(map(float, rows["(labels of drawn images)"])) > 85
    assert "drawn" in rows and (tmp_path / "train_on_drawn.png").is_file()
