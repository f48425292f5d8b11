"""Part 8: is it the thing? (exercise E4, tasks 3b and 3c)

CLIP makes a vector of a picture, and two pictures are alike as far as the cosine of their vectors says so. How much
the drawn pictures are like the training pictures is the mean cosine over all pairs of one with the other. A bare number
says little, so it is placed between two others: the floor, what one gets with the initializer instead of the learned
word, and the ceiling, how much the training pictures are like each other (pairs of different pictures; each is like
itself anyway):

    position = 0 at the floor, 1 at the ceiling, and in a straight line between and beyond

In the notes: `000`, task 3c; "An Image is Worth One Word" (arXiv 2208.01618), section 5. Afterwards compare with
`minti/evaluation/clip_scores.py`.
Your picture: how much the eight bundled toys are like each other, from black (little) to white.
"""

import torch
from torch import Tensor


def likeness(drawn: Tensor, training: Tensor) -> float:
    """The mean cosine of all pairs of (n, d) and (k, d); the vectors have any length."""
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def among_themselves(training: Tensor) -> float:
    """The mean cosine of all pairs of different rows of (n, d), n > 1; the vectors have any length."""
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def position(value: float, floor: float, ceiling: float) -> float:
    """Where a value is between its bounds."""
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----
