"""Part 4: how the known mistakes with attention and its maps are recognised."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import minti
from exercise.grader.part import Mistake, Part, Task
from exercise.grader.world import captioned, randn, seeded, toybox
from minti.guidance.attention import attention_weights
from minti.layers import Attention


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return Attention.attend(q, k, v)


def word_map(q: Tensor, k: Tensor, places: list[int], height: int, width: int) -> Tensor:
    weights = attention_weights(q, k).mean(dim=1)  # as `AttentionMaps` has it: b n m
    return weights[..., places].sum(dim=-1).unflatten(1, (height, width))


def attending(scale: Callable[[int], float] = lambda d: d**-0.5, dim: int = -1) -> Callable[..., Tensor]:
    """Attention with another scale, or a softmax over something else."""
    return lambda q, k, v: (q @ k.mT * scale(q.shape[-1])).softmax(dim) @ v


def mapping(wrong: Callable[[Tensor, list[int], int, int], Tensor]) -> Callable[..., Tensor]:
    """A map made in another way of the weights, (b, heads, n, m)."""
    return lambda q, k, places, height, width: wrong(attention_weights(q, k), places, height, width)


def transposed(weights: Tensor, places: list[int], height: int, width: int) -> Tensor:
    return weights.mean(1)[..., places].sum(-1).unflatten(1, (width, height)).mT


def shifted(weights: Tensor, places: list[int], height: int, width: int) -> Tensor:
    return weights.mean(1)[..., [place - 1 for place in places]].sum(-1).unflatten(1, (height, width))


def unnormalised(q: Tensor, k: Tensor, places: list[int], height: int, width: int) -> Tensor:
    scores = (q @ k.mT * q.shape[-1] ** -0.5).mean(1)
    return scores[..., places].sum(-1).unflatten(1, (height, width))


def image(mine: Any) -> Image.Image:
    """A toy drawn with the learner's attention, and where four words of its prompt look."""
    model, prompt = toybox(), "a red star next to a blue heart"
    side, tokens = model.unet.config.sample_size, model.tokenize([prompt])[0].tolist()
    words = ("red", "star", "blue", "heart")
    places = [tokens.index(model.tokenizer(word).input_ids[1]) for word in words]
    sums = torch.zeros(len(places), side, side)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        small = math.isqrt(q.shape[2])
        for total, place in zip(sums, places):
            heat = mine.word_map(q[-1:], k[-1:], [place], small, small)[None]  # of the half that has the prompt
            total += torch.nn.functional.interpolate(heat, (side, side), mode="bilinear")[0, 0]
        return mine.attention(q, k, v)

    listening = [layer for name, layer in model.unet.named_modules() if name.endswith("attn2")]
    try:
        for layer in listening:
            layer.attend = attend
        options = {"num_inference_steps": 15, "sampler": "ddim", "generator": seeded(4)}
        (drawn,) = minti.sample(model, [prompt], **options)
    finally:
        for layer in listening:
            del layer.attend
    shades = (255 * sums / sums.amax(dim=(1, 2), keepdim=True)).byte().numpy()
    maps = [Image.fromarray(shade).resize(drawn.size, Image.Resampling.NEAREST).convert("RGB") for shade in shades]
    return captioned([drawn, *maps], ["", *words], 5, [prompt])


def attention_probe(function: Callable[..., Tensor]) -> Tensor:
    return function(randn(2, 3, 5, 16), 2 * randn(2, 3, 5, 16, seed=1), randn(2, 3, 5, 16, seed=2))


def map_probe(function: Callable[..., Tensor]) -> list[Tensor]:
    q, k = randn(2, 3, 6, 16), randn(2, 3, 5, 16, seed=1)
    return [function(q.clone(), k.clone(), places, 2, 3) for places in ([2], [2, 3])]


KEY, HEADS, MAPS = '`002` 1.3, "Key equation"', "`002` 1.4", "`002` 7.4 and the text of this part"
PART = Part(
    (
        Task(
            attention,
            attention_probe,
            KEY,
            (
                Mistake(
                    "the scores not divided by the root of d",
                    attending(lambda d: 1.0),
                    "What variance has a sum of d products of standard normal numbers?",
                    KEY,
                ),
                Mistake(
                    "the scores divided by d, where its root belongs",
                    attending(lambda d: 1 / d),
                    "A sum of d products has variance d; what is its standard deviation?",
                    KEY,
                ),
                Mistake(
                    "softmax over the queries",
                    attending(dim=-2),
                    "Over what should a query's weights sum to 1? Check your sums over the last axis.",
                    KEY,
                ),
                Mistake(
                    "softmax over the heads",
                    attending(dim=1),
                    "Heads are independent; over what do the weights of each sum to 1?",
                    HEADS,
                ),
            ),
        ),
        Task(
            word_map,
            map_probe,
            MAPS,
            (
                Mistake(
                    "height and width exchanged",
                    mapping(transposed),
                    "The positions run row by row; which axis comes first?",
                    MAPS,
                ),
                Mistake(
                    "a mean over the word's tokens, where a sum belongs",
                    mapping(
                        lambda w, places, height, width: w.mean(1)[..., places].mean(-1).unflatten(1, (height, width))
                    ),
                    "The weights sum to 1 over the tokens; how much do both tokens of a word get together?",
                    MAPS,
                ),
                Mistake(
                    "a sum over the heads, where a mean belongs",
                    mapping(
                        lambda w, places, height, width: w.sum(1)[..., places].sum(-1).unflatten(1, (height, width))
                    ),
                    "Can the weights of a position sum to more than 1?",
                    HEADS,
                ),
                Mistake(
                    "the token before: its place off by one",
                    mapping(shifted),
                    "`places` already counts the beginning-of-text token.",
                    MAPS,
                ),
                Mistake(
                    "scores, where weights belong: there is no softmax",
                    unnormalised,
                    "What do a position's numbers for all tokens sum to?",
                    KEY,
                ),
            ),
        ),
    ),
    image,
)
