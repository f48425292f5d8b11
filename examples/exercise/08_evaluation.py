"""Part 8: the evaluation's prompts and samples, and CLIP image alignment (CLIP-I) (exercise E4, tasks 3b and 3c)

Two learned words are tested with 3 + 3 + 2 prompts and four images of each: three templates with each word alone, and
two with both words. So that images can be compared, image i of every prompt starts from the same noise: then two images
in a column differ by their prompts only.

Do they show the subject? CLIP encodes an image as a vector, and the cosine of two vectors says how similar the images
are. The similarity of the samples to the training images is the mean cosine over all pairs of a sample and a training
image. A number alone says little, so two others bound it: the floor, the similarity of samples made with the
initializer token instead of the learned word; and the ceiling, the similarity of the training images to each other,
over pairs of different images (every image has a cosine of 1 with itself):

    position: 0 at the floor, 1 at the ceiling, and linear between them and beyond

In the notes: exercise E4 `000`, tasks 3b and 3c; question 40 of `003`, "Discuss evaluation metrics (CLIP-FID)"; "An
Image is Worth One Word" (arXiv 2208.01618), section 5. Afterwards compare with `plan` and `draw` in
`examples/support/rows.py`, and with `minti/evaluation/clip_scores.py`.
Your image: how similar the eight bundled toys are to each other, from black (little) to white.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def eight_prompts(templates: Sequence[str], both: Sequence[str], first: str, second: str) -> list[str]:
    """The prompts: all templates with the first word, all with the second, and then those with both.

    Args:
        templates: with one {} for a word, such as "a black and white photo of a {}".
        both: with two {}, for the first word and then the second, such as "a photo of a {} next to a {}".
        first, second: the two words.
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def samples_of(
    prompts: Sequence[str], per_prompt: int, sample: Callable[[str, torch.Generator], Any], seed: int
) -> list[list[Any]]:
    """For each prompt a list of `per_prompt` images; image i of every prompt has a generator of its own, of seed + i.

    Args:
        sample: sample(prompt, generator) returns an image.
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def likeness(drawn: Tensor, training: Tensor) -> float:
    """The mean cosine of all pairs of rows of (n, d) and (k, d); the vectors may have any length."""
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def among_themselves(training: Tensor) -> float:
    """The mean cosine of all pairs of different rows of (n, d), n > 1; the vectors may have any length."""
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def position(value: float, floor: float, ceiling: float) -> float:
    """Where a value lies between floor and ceiling."""
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----
