"""Part 9: LoRA, low-rank adaptation.

The layer stays frozen, and the product of two thin matrices is learned beside it:

    y = W x + (alpha / r) B A x          W: (d_out, d_in), A: (r, d_in), B: (d_out, r)

A starts random and B at zero, so that the model starts unchanged. After training, the update can be merged into the
weight, W + (alpha / r) B A, and then costs no time.

In the notes: slides `001`, "LoRA in Linear Layers" and the pages around it (they leave out the division by r and write
A B); arXiv 2106.09685, 4.1. Afterwards compare with `minti/adapters/lora.py`.
Your image: an update of rank four, learned by LoRAs of rank one, two and four.
"""

import torch
from torch import Tensor


def start(rank: int, d_in: int, d_out: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A and B before the first step, (rank, d_in) and (d_out, rank). Any random numbers will do, not too large."""
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def lora_forward(x: Tensor, weight: Tensor, down: Tensor, up: Tensor, alpha: float) -> Tensor:
    """The output of layer and LoRA together, (..., d_in) -> (..., d_out). `down` is A, (r, d_in), `up` is B."""
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def merged(weight: Tensor, down: Tensor, up: Tensor, alpha: float) -> Tensor:
    """The weight with the update merged into it, (d_out, d_in), as a new tensor: `weight` stays as it is."""
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----
