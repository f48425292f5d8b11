"""Part 9: how the known mistakes with LoRA are recognised."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from exercise.grader.compare import same
from exercise.grader.mistakes.lora import GRADIENT, KEY, LINEAR, LORA_FORWARD, MERGED
from exercise.grader.mistakes.start import A_ZERO, B_ZERO, DIFFERENT, NEXT, OTHER, RANK, SAME, SHAPES, SIZE, START
from exercise.grader.part import Part, Task
from exercise.grader.seen import Case, Seen, calling
from exercise.grader.world import chart, gradient, randn, seeded
from minti.adapters.lora import Pair


def start(rank: int, d_in: int, d_out: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    down = nn.init.kaiming_uniform_(torch.empty(rank, d_in), a=math.sqrt(5), generator=generator)
    return down, torch.zeros(d_out, rank)


def lora_forward(x: Tensor, weight: Tensor, down: Tensor, up: Tensor, alpha: float) -> Tensor:
    pair = Pair(down, up, alpha)
    return F.linear(x, weight) + F.linear(F.linear(x, down), up) * pair.alpha / pair.rank


def merged(weight: Tensor, down: Tensor, up: Tensor, alpha: float) -> Tensor:
    return weight + up @ down * alpha / len(down)


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


def start_probe(function: Callable[..., Any]) -> Seen:
    """The shapes, and what the numbers are like."""
    pair = function(3, 8, 6, seeded())
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(each, Tensor) for each in pair):
        return {SHAPES: pair}
    down, up = pair
    generator = seeded()
    one, next_one = (function(3, 8, 6, generator)[0] for _ in range(2))
    (same_seed, _), (other, _), (large, _) = (
        function(3, 8, 6, seeded()),
        function(3, 8, 6, seeded(1)),
        function(9, 64, 5, seeded()),
    )
    return {
        SHAPES: [tuple(each.shape) for each in pair],
        A_ZERO: not down.any(),
        B_ZERO: not up.any(),
        DIFFERENT: len(down.unique()) > 1,
        SAME: same(down, same_seed),
        OTHER: not same(down, other),
        NEXT: not same(one, next_one),
        RANK: int(torch.linalg.matrix_rank(down.float())) if down.dim() == 2 else None,
        SIZE: bool(large.float().std() < 3),
    }


def layer(x: Tensor, weight: Tensor, down: Tensor, up: Tensor, alpha: float) -> Case:
    return {"x": x, "weight": weight, "down": down, "up": up, "alpha": alpha}


def forward_probe(function: Callable[..., Tensor]) -> Seen:
    """Also what A, B and the layers before would learn."""
    learned = {
        name: value.clone().requires_grad_(name in ("x", "down", "up")) for name, value in list(LAYER.items())[:4]
    }
    answer = calling(SMALL, LAYER)(function) | {GRADIENT: []}
    out = function(*learned.values(), 2.0)
    answer[GRADIENT] = [gradient(out.sum(), learned[name]) for name in ("down", "up", "x")]
    return answer


SMALL = layer(torch.tensor([3.0]), torch.ones(1, 1), torch.ones(2, 1), torch.ones(1, 2), 4.0)
LAYER = layer(randn(2, 5, 8), randn(6, 8, seed=1), randn(3, 8, seed=2), randn(6, 3, seed=3), 2.0)
PART = Part(
    (
        Task(start, start_probe, LINEAR, START),
        Task(lora_forward, forward_probe, LINEAR, LORA_FORWARD),
        Task(merged, calling(*({k: v for k, v in each.items() if k != "x"} for each in (SMALL, LAYER))), KEY, MERGED),
    ),
    image,
)
