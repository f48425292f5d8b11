"""Part 4: how the known mistakes with attention and its maps are recognised."""

from __future__ import annotations

import math
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import minti
from exercise.grader.mistakes.attention import ATTENTION, KEY
from exercise.grader.mistakes.word_map import MAPS, WORD_MAP
from exercise.grader.part import Part, Task
from exercise.grader.seen import Case, calling
from exercise.grader.world import captioned, randn, seeded, toybox
from minti.guidance.attention import attention_weights
from minti.layers import Attention


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return Attention.attend(q, k, v)


def word_map(q: Tensor, k: Tensor, places: list[int], height: int, width: int) -> Tensor:
    weights = attention_weights(q, k).mean(dim=1)  # as `AttentionMaps` has it: b n m
    return weights[..., places].sum(dim=-1).unflatten(1, (height, width))


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


def words(q: Tensor, k: Tensor, *places: list[int], size: tuple[int, int]) -> list[Case]:
    height, width = size
    return [{"q": q, "k": k, "places": each, "height": height, "width": width} for each in places]


EYE = 2 * torch.eye(2, 4)[None, None]  # two of length 2 in four dimensions
QUERIES, KEYS, VALUES = randn(2, 3, 6, 16), 2 * randn(2, 3, 5, 16, seed=1), randn(2, 3, 5, 16, seed=2)
SQUARE = {"q": randn(4, 4, 4, 4), "k": randn(4, 4, 4, 4, seed=1), "v": randn(4, 4, 4, 4, seed=2)}  # any transpose runs
PART = Part(
    (
        Task(
            attention,
            calling({"q": EYE[:, :, :1], "k": EYE, "v": EYE}, SQUARE, {"q": QUERIES, "k": KEYS, "v": VALUES}),
            KEY,
            ATTENTION,
        ),
        Task(
            word_map,
            calling(
                *words(EYE, EYE, [0], [0, 1], size=(1, 2)),
                *words(QUERIES, KEYS, [2], [2, 3], [1, 3], size=(2, 3)),
            ),
            MAPS,
            WORD_MAP,
        ),
    ),
    image,
)
