"""Part 8: how the known mistakes with similarities and their bounds are recognised (exercise E4, tasks 3b and 3c)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import minti
from exercise.grader.lessons.evaluation_prompts import TASKS as PROMPTS_AND_SAMPLES
from exercise.grader.lessons.evaluation_prompts import eight_prompts as eight_prompts
from exercise.grader.lessons.evaluation_prompts import samples_of as samples_of
from exercise.grader.part import Mistake, Part, Task
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
        sys.path.insert(0, toybox_folder)  # before the worker's own folder, which has a world.py, too
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


def pairs(kind: Callable[[Tensor, Tensor], Tensor], dim: int | None = -1) -> Callable[..., float]:
    """A similarity from other numbers than the cosines of all pairs."""

    def function(drawn: Tensor, training: Tensor) -> float:
        a, b = (each if dim is None else F.normalize(each, dim=dim) for each in (drawn, training))
        return float(kind(a, b))

    return function


def itself(kind: Callable[[Tensor, int], Tensor], dim: int | None = -1) -> Callable[..., float]:
    return lambda training: float(kind(training if dim is None else F.normalize(training, dim=dim), len(training)))


def of_means(drawn: Tensor, training: Tensor) -> float:
    return F.cosine_similarity(drawn.mean(0), training.mean(0), dim=0).item()


SIMILAR, BOUNDS = "arXiv 2208.01618, section 5; `000`, task 3c", "the text of this part"
PART = Part(
    (
        *PROMPTS_AND_SAMPLES,
        Task(
            likeness,
            lambda function: function(randn(5, 8) + 1, 3 * randn(5, 8, seed=1) + 1),
            SIMILAR,
            (
                Mistake(
                    "vectors that are not of length one",
                    pairs(lambda a, b: (a @ b.T).mean(), None),
                    "A cosine does not depend on how long the vectors are.",
                    SIMILAR,
                ),
                Mistake(
                    "normalised over the wrong axis: over the batch",
                    pairs(lambda a, b: (a @ b.T).mean(), 0),
                    "Which axis of (n, d) is one image's vector?",
                    SIMILAR,
                ),
                Mistake(
                    "only image i with image i, where all pairs belong",
                    pairs(lambda a, b: (a * b).sum(-1).mean()),
                    "Is there a reason to compare sample i with training image i only?",
                    SIMILAR,
                ),
                Mistake(
                    "the cosine of two means, where the mean of the cosines belongs",
                    of_means,
                    "What comes first, comparing or averaging?",
                    SIMILAR,
                ),
                Mistake(
                    "divided by the length of the whole matrix",
                    lambda drawn, training: float((drawn / drawn.norm() @ (training / training.norm()).T).mean()),
                    "How long is each row now?",
                    SIMILAR,
                ),
            ),
        ),
        Task(
            among_themselves,
            lambda function: function(3 * randn(5, 8) + 1),
            BOUNDS,
            (
                Mistake(
                    "each image compared with itself as well",
                    itself(lambda a, n: (a @ a.T).mean()),
                    "What is on the diagonal, and does it say anything?",
                    BOUNDS,
                ),
                Mistake(
                    "the diagonal taken out of the sum but not out of the count",
                    itself(lambda a, n: ((a @ a.T).sum() - n) / n**2),
                    "How many pairs of different images are there?",
                    BOUNDS,
                ),
                Mistake(
                    "vectors that are not of length one",
                    itself(lambda a, n: ((a @ a.T).sum() - (a * a).sum()) / (n * (n - 1)), None),
                    "A cosine does not depend on how long the vectors are.",
                    SIMILAR,
                ),
                Mistake(
                    "each pair once in the sum, and twice in the count",
                    itself(lambda a, n: (a @ a.T).triu(1).sum() / (n * (n - 1))),
                    "How many pairs are above the diagonal?",
                    BOUNDS,
                ),
            ),
        ),
        Task(
            position,
            lambda function: [function(0.7, 0.5, 0.9), function(0.6, 0.5, 0.9), function(0.45, 0.5, 0.9)],
            BOUNDS,
            (
                Mistake(
                    "floor and ceiling exchanged",
                    lambda value, floor, ceiling: (value - ceiling) / (floor - ceiling),
                    "What should the result be at the floor?",
                    BOUNDS,
                ),
                Mistake(
                    "divided by the ceiling, where the room between the two belongs",
                    lambda value, floor, ceiling: (value - floor) / ceiling,
                    "What should the result be at the ceiling?",
                    BOUNDS,
                ),
                Mistake(
                    "cut off at 0 and 1",
                    lambda value, floor, ceiling: min(max((value - floor) / (ceiling - floor), 0.0), 1.0),
                    "What should a word get that is worse than its initializer?",
                    BOUNDS,
                ),
            ),
        ),
    ),
    image,
)
