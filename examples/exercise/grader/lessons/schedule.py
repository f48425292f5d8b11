"""Part 1: how the known mistakes with the schedule and its noise are recognised."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from exercise.grader.mistakes.add_noise import ADD_NOISE, PLACE
from exercise.grader.mistakes.alphas_cumprod import ALPHAS_CUMPROD, BAR
from exercise.grader.part import Part, Task
from exercise.grader.seen import calling
from exercise.grader.world import ALPHAS, BETAS, captioned, randn, scheduler_of, toybox, toys
from minti.images import to_pil


def make_alphas_cumprod(betas: Tensor) -> Tensor:
    return torch.cumprod(1 - betas, dim=0)  # as `NoiseScheduler` begins


def add_noise(clean: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    return scheduler_of(alphas_cumprod).add_noise(clean, noise, timesteps)


def image(mine: Any) -> Image.Image:
    """A toy at seven timesteps."""
    model, (_, pixels) = toybox(), toys()
    timesteps = torch.tensor([0, 100, 250, 400, 600, 800, 999])
    latents = model.scale(model.encode(pixels[:1]).mean).expand(len(timesteps), -1, -1, -1)
    alphas_cumprod = mine.make_alphas_cumprod(model.scheduler.betas)
    noise = randn(*latents[:1].shape).expand_as(latents)
    with torch.no_grad():
        drawn = to_pil(model.decode(mine.add_noise(latents, noise, timesteps, alphas_cumprod)))
    return captioned(drawn, [f"t = {t}" for t in timesteps.tolist()], columns=len(drawn))


def some(clean: float, noise: float) -> dict[str, Any]:
    """A case of one number, or of two images at two timesteps."""
    number = torch.ones(1, 1, 1, 1)
    return {"clean": clean * number, "noise": noise * number, "timesteps": torch.tensor([0]), "alphas_cumprod": SMALL}


SMALL = torch.tensor([0.64, 0.36])
PAIR = {"clean": torch.ones(2, 1, 1, 1), "noise": torch.zeros(2, 1, 1, 1), "timesteps": torch.tensor([0, 1])}
LATENTS = {
    "clean": randn(4, 4, 4, 4),
    "noise": randn(4, 4, 4, 4, seed=1),
    "timesteps": torch.tensor([1, 300, 700, 998]),
}
PART = Part(
    (
        Task(
            make_alphas_cumprod,
            calling({"betas": torch.tensor([0.1, 0.2])}, {"betas": torch.tensor([0.1, 0.2, 0.5])}, {"betas": BETAS}),
            BAR,
            ALPHAS_CUMPROD,
        ),
        Task(
            add_noise,
            calling(
                some(1, 0),
                some(0, 1),
                PAIR | {"alphas_cumprod": SMALL},
                LATENTS | {"alphas_cumprod": ALPHAS},
            ),
            PLACE,
            ADD_NOISE,
        ),
    ),
    image,
)
