"""Right functions are right, and mistakes, written down as a learner would, are recognised by their names.

`mistakes/` has them part by part: a function and what is said of it, or "right", or "wrong" where it has no name. Below
that is what stands in its hole.
"""

import re
from pathlib import Path

import pytest
from running import ROOT

from exercise.grader.part import CHANGED, alike, counting, judge
from exercise.grader.submission import PARTS, functions, judged, lesson

EXERCISE = ROOT / "examples/exercise"
HOLE = "    raise NotImplementedError"


def written():
    """(part, function, what is said of it, what stands in its hole) of all files."""
    for part, stem in PARTS.items():
        text = (Path(__file__).parent / "mistakes" / f"{stem}.txt").read_text(encoding="utf-8")
        for name, says, body in re.findall(r"^(\w+): (.+)\n((?:    .*\n)+)", text, re.MULTILINE):
            yield pytest.param(part, name, says, body.rstrip("\n"), id=f"{name}-{says[:40]}")


def verdict(part, name, body, folder):
    """What the grader says of a function with this body."""
    before, after = (EXERCISE / f"{PARTS[part]}.py").read_text(encoding="utf-8").split(f"def {name}(")
    file = folder / f"{PARTS[part]}.py"
    file.write_text(before + f"def {name}(" + after.replace(HOLE, body, 1), encoding="utf-8")
    (task,) = (task for task in lesson(part).tasks if task.name == name)
    return judge(task, functions(file)[name], file)


@pytest.mark.parametrize("part, name, says, body", list(written()))
def test_what_is_said_of_a_function(part, name, says, body, tmp_path):
    found = verdict(part, name, body, tmp_path)
    if says == "wrong":
        assert found.state == "wrong"
    else:
        assert found.says.startswith(says) and found.state == ("right" if says == "right" else "mistake"), found.says


@pytest.mark.parametrize("part", PARTS)
def test_known_mistakes_are_wrong_and_told_apart(part):
    """Each of their wrong functions is called by its own name, and there are ten at least of each part."""
    tasks = lesson(part).tasks
    for task in tasks:
        assert task.known and all(mistake.hint for mistake in task.mistakes)
        for mistake, made in task.known:
            assert isinstance(made, BaseException) or not alike(made, task.expected, counting(task.expected))
            by = {each.name: each.by or counting(task.expected, CHANGED) for each in task.mistakes}
            first = next(other for other, seen in task.known if alike(made, seen, by[other.name]))
            assert first.name == mistake.name
    assert sum(len(task.mistakes) for task in tasks) >= 10


NOISE = "(noise := torch.randn(latents.shape, generator=generator))"
PREDICTION = f"wrapper.unet(wrapper.scheduler.add_noise(latents, {NOISE}, timestep_idx), timestep_idx, embeddings)"
# What stands in a hole, and what is said where the mistake has no name; the right numbers are from each part's formula.
UNNAMED = [
    (
        "schedule",
        "make_alphas_cumprod",
        "torch.cumprod(1 - betas, 0) / 2",
        "betas = [0.1, 0.2]: yours [0.45, 0.36], right [0.9, 0.72]",
    ),
    ("schedule", "make_alphas_cumprod", "(-betas).log()", "betas = [0.1, 0.2]: your result contains NaN"),
    ("schedule", "make_alphas_cumprod", "betas[:1]", "betas = [0.1, 0.2]: gives shape (1,), expected (2,)"),
    (
        "guidance",
        "guided",
        "uncond + 2 * scale * (cond - uncond)",
        "uncond = 1, cond = 0, scale = 3: yours -5, right -2",
    ),
    (
        "guidance",
        "evaluations",
        "pictures * steps if scale == 1 else pictures * (steps + min(-(-steps // every), 2))",
        "pictures = 1, steps = 9, scale = 3, every = 4: yours 11, right 12",
    ),
    (
        "loss",
        "diffusion_loss",
        f"(({PREDICTION} - noise) ** 4).mean()",
        "two images, the prediction 0.5 too large: the loss: yours 0.0625, right 0.25",
    ),
    (
        "loss",
        "scaled_latents",
        "encoded.sample(generator) * scaling_factor * 3",
        "a distribution that is always 4, scaling_factor = 0.5: yours 6, right 2",
    ),
    (
        "evaluation",
        "position",
        "((value - floor) / (ceiling - floor)) ** 3",
        "value = 0.7, floor = 0.5, ceiling = 0.9: yours 0.125, right 0.5",
    ),
    (
        "lora",
        "lora_forward",
        "x @ weight.T + 3 * x @ down.T @ up.T",
        "x = [3], weight = 1, down = [1, 1], up = [1, 1], alpha = 4: yours [21], right [15]",
    ),
    (
        "prior",
        "prior_loss",
        "loss(instance) + 2 * weight * loss(prior)",
        "losses of 1 (instance) and 4 (prior), weight = 1: yours 9, right 5",
    ),
    (
        "gradient",
        "gradient_of",
        "-3 * x",
        "log p(y | x) = -|x|^2 / 2, x = [[1, 2], [3, -1]]: yours [[-3, -6], [-9, 3]], right [[-1, -2], [-3, 1]]",
    ),
]


@pytest.mark.parametrize("part, name, result, says", UNNAMED, ids=lambda value: str(value)[:30])
def test_a_mistake_without_a_name_is_shown_at_its_smallest_case(part, name, result, says, tmp_path):
    found = verdict(part, name, f"    return {result}", tmp_path)
    assert (found.state, found.says) == ("wrong", says)


@pytest.mark.parametrize("part", PARTS)
def test_the_holes_are_not_written_yet(part):
    verdicts = list(judged(EXERCISE, part))
    assert [(v.state, v.says) for v in verdicts] == [("unwritten", "not written yet")] * len(lesson(part).tasks)


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_not_written_yet(part, tmp_path):
    for source in (None, "import torch\n"):
        if source:
            (tmp_path / f"{PARTS[part]}.py").write_text(source, encoding="utf-8")
        verdicts = list(judged(tmp_path, part))
        assert {v.state for v in verdicts} == {"unwritten"} and len(verdicts) == len(lesson(part).tasks)


@pytest.mark.parametrize("part", PARTS)
def test_minti_s_own_functions_are_right(part, tmp_path):
    tasks = lesson(part).tasks
    names = ", ".join(task.name for task in tasks)
    (tmp_path / f"{PARTS[part]}.py").write_text(
        f"from exercise.grader.lessons.{part} import {names}\n", encoding="utf-8"
    )
    assert [v.state for v in judged(tmp_path, part)] == ["right"] * len(tasks)
