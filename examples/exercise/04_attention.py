"""Part 4: attention, and where a prompt's words look.

Every position of the picture asks (a query), every token of the prompt has a key and a value:

    weights = softmax(Q K^T / sqrt(d)),      attention = weights V

Each query spreads a weight of one over the tokens. Several heads do so side by side, each by itself. A word's map is
how much weight each position of the picture gives it: the mean over the heads, and, as a word may have several tokens,
the sum over those.

In the notes: `002` 1.3, 1.4 and 7.4. Afterwards compare with `minti/networks/layers.py`, `minti/networks/kernels.py`
and `minti/evaluation/attention_maps.py`.
Your picture: a drawing made with your attention, and the maps of four of its words. Do the colours' maps lie where the
nouns' do?
"""

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(b, heads, n, d) queries, (b, heads, m, d) keys and values -> (b, heads, n, d)."""
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def word_map(q: Tensor, k: Tensor, places: list[int], height: int, width: int) -> Tensor:
    """How much weight a word gets at each place of the picture, (b, height, width) in [0, 1].

    Args:
        q: (b, heads, n, d), where n = height * width; the positions run along the first row, then the second ...
        k: (b, heads, m, d).
        places: which of the m tokens are the word's, counted from 0, the beginning-of-text token included.
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----
