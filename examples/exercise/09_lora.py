"""Part 9: LoRA.

Beside a frozen layer, a product of two thin matrices learns:

    y = W x + (alpha / r) B A x          W: (d_out, d_in), A: (r, d_in), B: (d_out, r)

A is random at first and B is zero, so that the model begins as it was. Once learned, the update can be put into the
weight, W + (alpha / r) B A, and then takes no time.

In the notes: `001`, "LoRA in Linear Layers" (which leaves out the division by r and writes A B) and the pages round it;
arXiv 2106.09685, 4.1. Afterwards compare with `minti/parts/lora.py`.
Your picture: an update of rank four, learned by LoRAs of rank one, two and four.
"""

import torch
from torch import Tensor


def start(rank: int, d_in: int, d_out: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A and B before the first step, (rank, d_in) and (d_out, rank). Any random numbers will do, not too large."""
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def lora_forward(x: Tensor, weight: Tensor, down: Tensor, up: Tensor, alpha: float) -> Tensor:
    """What layer and LoRA answer together: (..., d_in) -> (..., d_out). `down` is A, `up` is B, r is A's rows."""
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def merged(weight: Tensor, down: Tensor, up: Tensor, alpha: float) -> Tensor:
    """The weight with the update in it, (d_out, d_in), as a new tensor: `weight` stays as it was."""
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----
