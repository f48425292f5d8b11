"""Part 4: attention, and the attention map of a word.

Each position of the image has a query, each token of the prompt a key and a value:

    weights = softmax(Q K^T / sqrt(d)),      attention = weights V

The weights of a query sum to 1 over the tokens. Several heads do this side by side, independently. A word's attention
map says how much weight each position of the image gives the word: the mean over the heads, and the sum over the word's
tokens, if it has several.

In the notes: lecture notes `002`, 1.3, 1.4 and 7.4; question 13 of `003`, "Describe attention mechanisms in the
diffusion U-Net". Afterwards compare with `Attention` in `minti/layers.py`, `attention_weights` in
`minti/guidance/attention.py`, and `minti/editing/attention_maps.py`.
Your image: a sample made with your attention, and the maps of four words of its prompt. Do the maps of the colours lie
where those of the nouns do?
"""

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention: (b, heads, n, d) queries, (b, heads, m, d) keys and values -> (b, heads, n, d)."""
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def word_map(q: Tensor, k: Tensor, places: list[int], height: int, width: int) -> Tensor:
    """A word's attention map: the weight it gets at each position of the image, (b, height, width) in [0, 1].

    Args:
        q: (b, heads, n, d) with n = height * width; the positions run row by row.
        k: (b, heads, m, d).
        places: which of the m tokens are the word's, counted from 0, including the beginning-of-text token.
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----
