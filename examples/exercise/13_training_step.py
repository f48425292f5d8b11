"""Part 13: a training step, from images to the loss (exercise E4, task 3a).

    image -> VAE -> a sample of its latents, scaled       without a gradient
    a template with the placeholder in it -> tokens -> text encoder -> context       with a gradient
    latents, a random timestep and the context -> the loss of part 5

Part 7 is the loop around this; its `draw` and `loss` are what you write here. The classes are those of diffusers and
transformers: `vae.encode(pixels).latent_dist` is a distribution, with `.sample(generator)`, and the text encoder
returns an object with several results, one of which is the sequence of its last hidden states, (b, m, d).

In the notes: exercise E4 `000`, task 3a; lecture notes `002`, 7.3, 7.4 and 16; of `003` question 8, "Describe the VAE
encoder-decoder in latent space". Afterwards compare with `TrainingImages` and `batch_loss` in
`minti/textual_inversion.py`, and `tokenize` in `minti/text.py`.
Your image: a training image, its latents decoded again, the same with noise, and what the network makes of that.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def image_latents(vae: Any, pixels: Tensor, generator: torch.Generator) -> Tensor:
    """The scaled latents of images, (b, c, h, w), a sample of the VAE's distribution, without a gradient.

    Args:
        vae: has `vae.encode(pixels)` and `vae.config.scaling_factor`.
        pixels: (b, 3, H, W), in [-1, 1], as the VAE expects them.
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def token_ids(tokenizer: Any, prompts: list[str]) -> Tensor:
    """The tokens of prompts, (b, m): every prompt padded or cut to the length m that the model was trained with.

    Args:
        tokenizer: a CLIP tokenizer of transformers; its `model_max_length` is m, 77 for SD v1.4.
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----


def training_loss(
    wrapper: Any,
    pixels: Tensor,
    templates: Sequence[str],
    placeholder: str,
    loss: Callable[..., Tensor],
    generator: torch.Generator,
) -> Tensor:
    """The loss of a batch, (), with a gradient for the text encoder's token embeddings.

    So that it can be checked, draw with the generator in this order: the latents; for each image a template, by one
    call of `torch.randint(..., (b,), generator=generator)`; for each image a timestep, by another.

    Args:
        wrapper: has `vae`, `tokenizer`, `text_encoder`, and `scheduler` with `scheduler.config.num_train_timesteps`.
        pixels: (b, 3, H, W), in [-1, 1].
        templates: prompts with {} where the placeholder goes, such as "a photo of a {}".
        loss: `loss(wrapper, latents, timesteps, embeddings, generator)`, part 5's, which draws the noise.
    """
    # ---- YOUR CODE STARTS HERE ----
    raise NotImplementedError
    # ---- YOUR CODE ENDS HERE ----
