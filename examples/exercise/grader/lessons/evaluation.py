"""Part 8: how the known mistakes with similarities and their bounds are recognised (exercise E4, tasks 3b and 3c)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import minti
from exercise.grader.lessons.evaluation_prompts import TASKS as PROMPTS_AND_SAMPLES
from exercise.grader.lessons.evaluation_prompts import eight_prompts as eight_prompts
from exercise.grader.lessons.evaluation_prompts import samples_of as samples_of
from exercise.grader.mistakes.evaluation import AMONG_THEMSELVES, BOUNDS, POSITION
from exercise.grader.mistakes.likeness import LIKENESS, SIMILAR
from exercise.grader.part import Part, Task
from exercise.grader.seen import Case, calling
from exercise.grader.world import CONCEPTS, randn, toybox, toys
from minti.evaluation import clip_scores
from minti.evaluation.clip_scores import Score


def likeness(drawn: Tensor, training: Tensor) -> float:
    return clip_scores.mean_similarity(*(F.normalize(each, dim=-1) for each in (drawn, training)))


def among_themselves(training: Tensor) -> float:
    return clip_scores.among_themselves(F.normalize(training, dim=-1))


def position(value: float, floor: float, ceiling: float) -> float:
    return Score(value, floor, ceiling).position


def image(mine: Any) -> Image.Image:
    """Each bundled concept's images beside those of each other: a table of likenesses as shades of grey."""
    toybox_folder = str(CONCEPTS.parent / "toybox")
    if toybox_folder not in sys.path:
        sys.path.insert(0, toybox_folder)
    from toy_clip import load_toy_clip

    clip = load_toy_clip(toybox(), minti.TOYBOX)
    names = sorted(Path(path).name for path in CONCEPTS.iterdir() if path.is_dir())
    images = [toys(name)[0] for name in names]
    encoded = [clip.images(each) for each in images]
    side, count = 64, len(names) + 1
    canvas = Image.new("RGB", (count * side, count * side), "white")
    for i, first in enumerate(encoded):
        canvas.paste(images[i][0].resize((side, side)), (0, (i + 1) * side))
        canvas.paste(images[i][0].resize((side, side)), ((i + 1) * side, 0))
        for j, second in enumerate(encoded):
            value = mine.among_themselves(first) if i == j else mine.likeness(first, second)
            shade = int(255 * min(max(mine.position(value, 0.3, 1.0), 0.0), 1.0))
            canvas.paste((shade, shade, shade), ((i + 1) * side, (j + 1) * side, (i + 2) * side, (j + 2) * side))
    return canvas


def between(value: float, floor: float, ceiling: float) -> Case:
    return {"value": value, "floor": floor, "ceiling": ceiling}


TWO = torch.tensor([[1.0, 0], [3, 4]])
PART = Part(
    (
        *PROMPTS_AND_SAMPLES,
        Task(
            likeness,
            calling(
                {"drawn": torch.tensor([[6.0, 8]]), "training": TWO},
                {"drawn": randn(5, 8) + 1, "training": 3 * randn(5, 8, seed=1) + 1},
                {"drawn": randn(3, 8), "training": 3 * randn(5, 8, seed=1) - 1},
            ),
            SIMILAR,
            LIKENESS,
        ),
        Task(
            among_themselves,
            calling({"training": TWO}, {"training": 3 * randn(5, 8) + 1}, {"training": randn(8, 8) - 1}),
            BOUNDS,
            AMONG_THEMSELVES,
        ),
        Task(position, calling(*(between(value, 0.5, 0.9) for value in (0.7, 0.6, 0.45, 1.0))), BOUNDS, POSITION),
    ),
    image,
)
