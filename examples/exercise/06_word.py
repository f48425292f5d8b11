"""Part 6: a new token, and embedding vectors that do not change: embedding row masking (exercise E4, task 2).

The text encoder's embedding matrix has a row for each token, its embedding vector. A new word has one row or several:
copies of the initializer token's row, at the end of the matrix. Autograd can only train the whole matrix, because it is
one tensor, so the old rows are restored after every optimizer step. E4's recipe: keep a copy, write a function that
restores the old rows from it, and patch `optimizer.step` to call that function.

In the notes: exercise E4 `000`, task 2; lecture notes `002`, 16. Afterwards compare with `MaskedEmbedding` in
`minti/textual_inversion.py`, which uses the optimizer's hooks instead of a patch, and with `LearnedEmbedding` there,
which needs no copy.
Your image: how far old and new rows move, with your patch and without it.
"""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def extended(weight: Tensor, initializer_id: int, num_vectors: int) -> Tensor:
    """The embedding matrix with a new word's rows, (v, d) -> (v + num_vectors, d), each a copy of the initializer's."""
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def keep_the_rest(optimizer: Optimizer, weight: nn.Parameter, first: int) -> None:
    """Makes every step of this optimizer change only the rows of `weight`, (v, d), from index `first` on.

    Called once, before training. The optimizer is an AdamW with weight decay over `weight`. Change the numbers of a
    parameter within `torch.no_grad()` and in place: `weight[...] = ...`.
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----
