"""Part 3: classifier-free guidance, and what of it can be kept (exercise E4, question 2).

The network answers twice, with the prompt (cond) and with the empty one (uncond), and one goes on beyond the prompt's:

    epsilon = uncond + s (cond - uncond)

s is the guidance scale: 1 leaves the prompt's answer alone, 0 the other. The notes have it in two forms: with s in
`002` 7.4 and `003` 6, with w = s - 1 in `002` 15 and on the slides `001`. Here it is s.

The unconditional answer depends on the latents, so it cannot be computed once and for all. But it changes slowly. One
may compute it in the first step and then in every k-th only, and keep it in between.

Afterwards compare with `minti/diffusion/guidance.py`: `guided` and `refreshed`.
Your picture: two prompts, each with the scales 0, 1, 3, 5 and 10 from the same noise.
"""

import torch
from torch import Tensor


def guided(uncond: Tensor, cond: Tensor, scale: float) -> Tensor:
    """The guided prediction, (b, c, h, w), of two of that shape."""
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def evaluations(pictures: int, steps: int, scale: float, every: int) -> int:
    """How many pictures go through the network in a run, in all.

    Both halves count: a picture that is evaluated with its prompt and without it counts twice.

    Args:
        pictures, steps: B pictures, T steps.
        scale: with 1 the unconditional answer is not needed at all; no other scale is special here.
        every: k; the unconditional answer is computed in the steps 0, k, 2k, ... and kept in between.
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----
