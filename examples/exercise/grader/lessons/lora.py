"""Part 9: how the known mistakes with LoRA are recognised."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from exercise.grader.part import Mistake, Part, Task
from exercise.grader.world import chart, randn, seeded
from minti.adapters.lora import Pair


def start(rank: int, d_in: int, d_out: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    down = nn.init.kaiming_uniform_(torch.empty(rank, d_in), a=math.sqrt(5), generator=generator)
    return down, torch.zeros(d_out, rank)


def lora_forward(x: Tensor, weight: Tensor, down: Tensor, up: Tensor, alpha: float) -> Tensor:
    pair = Pair(down, up, alpha)
    return F.linear(x, weight) + F.linear(F.linear(x, down), up) * pair.alpha / pair.rank


def merged(weight: Tensor, down: Tensor, up: Tensor, alpha: float) -> Tensor:
    return weight + up @ down * alpha / len(down)


def forward(scale: Callable[[float, int], float], frozen: bool = True) -> Callable[..., Tensor]:
    return lambda x, weight, down, up, alpha: (
        frozen * F.linear(x, weight) + F.linear(F.linear(x, down), up) * scale(alpha, len(down))
    )


def merging(scale: Callable[[float, int], float], frozen: bool = True) -> Callable[..., Tensor]:
    return lambda weight, down, up, alpha: frozen * weight + up @ down * scale(alpha, len(down))


def start_probe(function: Callable[..., Any]) -> list[Any]:
    """Shapes, whether A is random and B is zero, and what the layer's answer is changed by."""
    down, up = function(3, 8, 6, seeded())
    shapes = [str(tuple(each.shape)) for each in (down, up)]
    return [*shapes, int(bool(down.any())), int(bool(up.any()))]


def image(mine: Any) -> Image.Image:
    """An update of a layer, of rank four, learned by LoRAs of three ranks."""
    weight, x = randn(24, 16), randn(256, 16, seed=1)
    wanted = F.linear(x, weight + randn(24, 4, seed=2) @ randn(4, 16, seed=3) / 8)
    lines = {}
    for rank in (1, 2, 4):
        down, up = (nn.Parameter(each) for each in mine.start(rank, 16, 24, seeded()))
        optimizer = torch.optim.Adam([down, up], lr=0.02)
        lines[f"rank {rank}"] = losses = []
        for _ in range(200):
            optimizer.zero_grad()
            loss = F.mse_loss(mine.lora_forward(x, weight, down, up, rank), wanted)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return chart("An update of rank 4, learned", lines, names=("step", "mean squared error"), logarithmic=True)


def forward_probe(function: Callable[..., Tensor]) -> Tensor:
    return function(randn(2, 5, 8), randn(6, 8, seed=1), randn(3, 8, seed=2), randn(6, 3, seed=3), 2.0)


def merged_probe(function: Callable[..., Tensor]) -> list[Tensor]:
    weight = randn(6, 8, seed=1)
    return [function(weight, randn(3, 8, seed=2), randn(6, 3, seed=3), 2.0), weight]


def in_place(weight: Tensor, down: Tensor, up: Tensor, alpha: float) -> Tensor:
    return weight.copy_(merged(weight, down, up, alpha))


LINEAR, KEY = '`001`, "LoRA in Linear Layers"; arXiv 2106.09685, 4.1', '`001`, "Key Idea: Decompose the weight update"'
RANK = "What is r? The inner dimension of B A."
RATIO = "What happens to the update if the rank is doubled? Its size should hardly change."
PART = Part(
    (
        Task(
            start,
            start_probe,
            LINEAR,
            (
                Mistake(
                    "A and B both random, so that the model does not start unchanged",
                    lambda rank, d_in, d_out, generator: (torch.ones(rank, d_in), torch.ones(d_out, rank)),
                    "What should B A be before the first step?",
                    LINEAR,
                ),
                Mistake(
                    "A and B both zero, so that neither ever gets a gradient",
                    lambda rank, d_in, d_out, generator: (torch.zeros(rank, d_in), torch.zeros(d_out, rank)),
                    "The gradient of B has A in it, and that of A has B.",
                    LINEAR,
                ),
                Mistake(
                    "A zero and B random, the other way round",
                    lambda rank, d_in, d_out, generator: (torch.zeros(rank, d_in), torch.ones(d_out, rank)),
                    "Both start with the unchanged model, but which of the two is zero in the paper and in files?",
                    LINEAR,
                ),
                Mistake(
                    "the shapes of A and B exchanged",
                    lambda rank, d_in, d_out, generator: (torch.ones(d_in, rank), torch.zeros(rank, d_out)),
                    "A weight has a row for each output, as in nn.Linear.",
                    KEY,
                ),
            ),
        ),
        Task(
            lora_forward,
            forward_probe,
            LINEAR,
            (
                Mistake("alpha / r forgotten", forward(lambda alpha, rank: 1.0), RATIO, LINEAR),
                Mistake("alpha not divided by the rank", forward(lambda alpha, rank: alpha), RATIO, LINEAR),
                Mistake("r / alpha, upside down", forward(lambda alpha, rank: rank / alpha), RATIO, LINEAR),
                Mistake(
                    "the frozen layer's own answer left out",
                    forward(lambda alpha, rank: alpha / rank, frozen=False),
                    "Does a LoRA replace the layer, or is it added to it?",
                    LINEAR,
                ),
                Mistake(
                    "alpha divided by d_out, which is not the rank",
                    lambda x, weight, down, up, alpha: lora_forward(x, weight, down, up, alpha * len(down) / len(up)),
                    RANK,
                    LINEAR,
                ),
            ),
        ),
        Task(
            merged,
            merged_probe,
            KEY,
            (
                Mistake("alpha / r forgotten", merging(lambda alpha, rank: 1.0), RATIO, LINEAR),
                Mistake("alpha not divided by the rank", merging(lambda alpha, rank: alpha), RATIO, LINEAR),
                Mistake(
                    "the update alone, without the weight",
                    merging(lambda alpha, rank: alpha / rank, frozen=False),
                    "Should the merged layer compute what layer and LoRA computed together?",
                    KEY,
                ),
                Mistake(
                    "alpha divided by d_out, which is not the rank",
                    lambda weight, down, up, alpha: merged(weight, down, up, alpha * len(down) / len(up)),
                    RANK,
                    LINEAR,
                ),
                Mistake(
                    "right, but `weight` itself was changed",
                    in_place,
                    "A second call would add the update twice. What does += do to a tensor?",
                    "what `merged` returns",
                ),
            ),
        ),
    ),
    image,
)
