"""Part 8: CLIP image alignment (CLIP-I): do the samples show the subject? (exercise E4, tasks 3b and 3c)

CLIP encodes an image as a vector, and the cosine of two vectors says how similar the images are. The similarity of the
samples to the training images is the mean cosine over all pairs of a sample and a training image. A number alone says
little, so two others bound it: the floor, the similarity of samples made with the initializer token instead of the
learned word; and the ceiling, the similarity of the training images to each other, over pairs of different images
(every image has a cosine of 1 with itself):

    position: 0 at the floor, 1 at the ceiling, and linear between them and beyond

In the notes: exercise E4 `000`, task 3c; question 40 of `003`, "Discuss evaluation metrics (CLIP-FID)"; "An Image is
Worth One Word" (arXiv 2208.01618), section 5. Afterwards compare with `minti/evaluation/clip_scores.py`.
Your image: how similar the eight bundled toys are to each other, from black (little) to white.
"""

import torch
from torch import Tensor


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
