"""Part 3: classifier-free guidance (CFG) and its cost (exercise E4, question 2).

The network predicts twice, with the prompt (cond) and with an empty one (uncond). Guidance extrapolates from uncond
through cond:

    epsilon = uncond + s (cond - uncond)

s is the guidance scale: s = 1 gives cond, s = 0 gives uncond. The notes write this in two ways: with s in the lecture
notes `002`, 7.4, and in question 6 of `003`, "Describe classifier guidance vs. classifier-free guidance"; in `002`, 15,
and on the slides `001` with w, which is s - 1. Here it is s.

The unconditional prediction depends on the latents, so it cannot be computed once for the whole run. But it changes
slowly: one can compute it in the steps 0, k, 2k, ... only, and reuse it in between.

Afterwards compare with `classifier_free_guidance` in `minti/sampling.py`, and with `cached_unconditional` in
`minti/guidance/conditions.py`.
Your image: two prompts, each at the scales 0, 1, 3, 5 and 10, from the same noise.
"""

import torch
from torch import Tensor


def guided(uncond: Tensor, cond: Tensor, scale: float) -> Tensor:
    """The guided prediction, (b, c, h, w), from the two predictions of that shape."""
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def evaluations(pictures: int, steps: int, scale: float, every: int) -> int:
    """How many images pass through the network in a whole run.

    An image that is evaluated with its prompt and without it counts twice. For example, 1 image, 7 steps, scale 7.5
    and k = 4 give 9: 7 conditional evaluations, and unconditional ones in the steps 0 and 4.

    Args:
        pictures, steps: B images, T steps.
        scale: at 1 the unconditional prediction is not needed at all; no other scale is special here.
        every: k; the unconditional prediction is computed in the steps 0, k, 2k, ... and reused in between.
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----
