"""Part 13's known mistakes with latents and tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exercise.grader.part import Mistake

ENCODED = "`000`, task 3a; `003` 8"
TOKENS = "`002` 7.3; the argument `tokenizer`"


def encoding(
    taken: Callable[[Any, torch.Generator], Tensor] = lambda distribution, generator: distribution.sample(generator),
    scaled: Callable[[Tensor, float], Tensor] = lambda latents, factor: latents * factor,
    shown: Callable[[Tensor], Tensor] = lambda pixels: pixels,
    gradient: bool = False,
) -> Callable[..., Tensor]:
    """`image_latents` with something else in one of its places."""

    def function(vae: Any, pixels: Tensor, generator: torch.Generator) -> Tensor:
        with torch.set_grad_enabled(gradient):
            return scaled(taken(vae.encode(shown(pixels)).latent_dist, generator), vae.config.scaling_factor)

    return function


LATENTS = (
    Mistake(
        "latents with a gradient",
        encoding(gradient=True),
        "Is anything trained in the VAE, and what does its graph cost in memory?",
        ENCODED,
    ),
    Mistake(
        "the scaling factor forgotten",
        encoding(scaled=lambda latents, factor: latents),
        "On latents of which variance was the UNet trained?",
        ENCODED,
    ),
    Mistake(
        "divided by the scaling factor",
        encoding(scaled=lambda latents, factor: latents / factor),
        "Is this encoding or decoding?",
        ENCODED,
    ),
    Mistake(
        "0.18215 written into the code",
        encoding(scaled=lambda latents, factor: latents * 0.18215),
        "Whose number is that, and does the VAE that you are given have the same?",
        "the argument `vae`",
    ),
    Mistake(
        "the distribution's mean, where a sample belongs",
        encoding(lambda distribution, generator: distribution.mean),
        "The encoder returns a distribution; what do you take from it?",
        ENCODED,
    ),
    Mistake(
        "a sample without the generator that is given",
        encoding(lambda distribution, generator: distribution.sample()),
        "Would another run with the same seed get the same latents?",
        "the argument `generator`",
    ),
    Mistake(
        "pixels in [-1, 1] scaled once more, as if they were in [0, 1]",
        encoding(shown=lambda pixels: 2 * pixels - 1),
        "In which range do the pixels come?",
        "the argument `pixels`",
    ),
    Mistake(
        "pixels in [-1, 1] shrunk to [0, 1]",
        encoding(shown=lambda pixels: pixels / 2 + 0.5),
        "In which range does the VAE expect them?",
        "the argument `pixels`",
    ),
)


def tokenizing(**options: Any) -> Callable[..., Any]:
    """`token_ids` with other options; those that are None are left out."""

    def function(tokenizer: Any, prompts: list[str]) -> Any:
        usual = {"padding": "max_length", "truncation": True, "max_length": tokenizer.model_max_length}
        chosen = usual | {"return_tensors": "pt"} | options
        return tokenizer(prompts, **{name: value for name, value in chosen.items() if value is not None}).input_ids

    return function


def attention_mask(tokenizer: Any, prompts: list[str]) -> Tensor:
    options = {"padding": "max_length", "truncation": True, "max_length": tokenizer.model_max_length}
    return tokenizer(prompts, **options, return_tensors="pt").attention_mask


IDS = (
    Mistake(
        "padded to the longest prompt only",
        tokenizing(padding=True),
        "How many positions did the model have in its training, and how many has it now for a short prompt?",
        TOKENS,
    ),
    Mistake(
        "a prompt that is too long not cut",
        tokenizing(truncation=None),
        "What becomes of the token after the last position that the text encoder has?",
        TOKENS,
    ),
    Mistake(
        "77 written into the code",
        tokenizing(max_length=77),
        "Whose number is that, and what does the tokenizer that you are given say?",
        "the argument `tokenizer`",
    ),
    Mistake(
        "no tokens for the beginning and the end",
        tokenizing(add_special_tokens=False),
        "With which token did every caption begin in CLIP's training?",
        TOKENS,
    ),
    Mistake(
        "lists, where a tensor belongs",
        tokenizing(return_tensors=None),
        "What does the text encoder take?",
        "what `token_ids` returns",
    ),
    Mistake(
        "the attention mask, where the tokens belong",
        attention_mask,
        "What are the entries of the tensor that you return?",
        TOKENS,
    ),
    Mistake(
        "one position too few",
        lambda tokenizer, prompts: tokenizing(max_length=tokenizer.model_max_length - 1)(tokenizer, prompts),
        "Do the tokens of beginning and end count?",
        TOKENS,
    ),
)
