"""Part 6: a new word, and rows that stay as they are (exercise E4, task 2).

A word is a row of the text encoder's embedding matrix, or a few rows. A new word begins as a copy of the initializer's
row, at the end of the matrix. Then the whole matrix trains, for that is one tensor, and after every step of the
optimizer the old rows are put back. E4 has the trick: keep a copy, write a function that puts it back, patch
`optimizer.step`.

In the notes: `000`, task 2; `002` 16. Afterwards compare with `minti/parts/restored_matrix.py`, which hooks into the
step instead of patching it, and `minti/parts/word.py`, which needs no copy.
Your picture: how far old and new rows move, with your patch and without.
"""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def extended(weight: Tensor, initializer_id: int, num_vectors: int) -> Tensor:
    """The matrix with a new word's rows, (v, d) -> (v + num_vectors, d), each a copy of the initializer's."""
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def keep_the_rest(optimizer: Optimizer, weight: nn.Parameter, first: int) -> None:
    """From now on a step of the optimizer changes only the rows of `weight`, (v, d), from `first` on.

    Called once, before training. The optimizer is an AdamW with weight decay over `weight`. Change numbers of a
    parameter within `torch.no_grad()`, in place: `weight[...] = ...`.
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----
