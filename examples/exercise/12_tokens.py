"""Part 12: a placeholder token, its embedding vectors, and what is trained (exercise E4, task 2).

Textual inversion needs a model that is set up for it, here with the classes of transformers, as E4's notebook has them:

    the tokenizer has new tokens, the placeholder's
    the text encoder has an embedding vector for each of them, at first a copy of the initializer token's
    the token embeddings are trainable; UNet, VAE and the rest of the text encoder are frozen, and asserts hold that

Part 6 does the first two on a bare matrix, and then the trick that leaves the other rows as they are. Before you begin,
look at what a CLIP tokenizer makes of a word: `tokenizer("x").input_ids`, and `tokenizer.tokenize("x")`.

In the notes: exercise E4 `000`, task 2; lecture notes `002`, 7.3 and 16. Afterwards compare with `add_tokens` and
`single_token_id` in `minti/text.py`, and `add_word` and `freeze` in `minti/model.py`.
Your image: a toy, and the same with the new word, which is still a copy. Are the images of a pair the same?
"""

from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer


def add_placeholders(tokenizer: CLIPTokenizer, placeholder: str, num_vectors: int) -> list[int]:
    """Adds a word's tokens to the tokenizer; returns their ids, in order.

    A word of three embedding vectors has three tokens, called as in diffusers: "<cat>", "<cat>_1" and "<cat>_2".

    Raises:
        ValueError: the tokenizer has one of these tokens already.
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def add_rows(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, ids: list[int], initializer_token: str) -> None:
    """Extends the text encoder to the tokenizer's length; the rows `ids` become copies of the initializer token's row.

    There are methods for it: `text_encoder.resize_token_embeddings(...)` and `text_encoder.get_input_embeddings()`.

    Args:
        ids: the new tokens' ids; the tokenizer has them already.
        initializer_token: a known word, such as "toy".

    Raises:
        ValueError: the initializer token is more than one token.
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def freeze_all_but_embeddings(unet: nn.Module, vae: nn.Module, text_encoder: CLIPTextModel) -> None:
    """Makes the text encoder's token embeddings trainable, and nothing else, whatever was trainable before."""
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def check_trainable(unet: nn.Module, vae: nn.Module, text_encoder: CLIPTextModel) -> None:
    """Makes sure, by `assert`, that the text encoder's token embeddings are trainable and nothing else is.

    Raises:
        AssertionError: they are not, or something else is.
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----
