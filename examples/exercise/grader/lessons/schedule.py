"""Part 1: how the known mistakes with the schedule and its noise are recognised."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from exercise.grader.part import Mistake, Part, Task
from exercise.grader.world import ALPHAS, BETAS, captioned, randn, scheduler_of, toybox, toys
from minti.images import to_pil


def make_alphas_cumprod(betas: Tensor) -> Tensor:
    return torch.cumprod(1 - betas, dim=0)  # as `NoiseScheduler` begins


def add_noise(clean: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    return scheduler_of(alphas_cumprod).add_noise(clean, noise, timesteps)


def rates(wrong: Any) -> Any:
    """`add_noise` with signal and noise rate from somewhere else: wrong(alpha-bar, (b, 1, 1, 1)) -> two."""

    def function(clean: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
        signal, noisy = wrong(alphas_cumprod[timesteps][:, None, None, None])
        return signal * clean + noisy * noise

    return function


def along_the_width(clean: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    a = alphas_cumprod[timesteps]  # (b,) beside (b, c, h, w), where b = w
    return a**0.5 * clean + (1 - a) ** 0.5 * noise


def earlier(clean: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    return add_noise(clean, noise, timesteps - 1, alphas_cumprod)


def own_noise(clean: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    return add_noise(clean, torch.randn_like(clean), timesteps, alphas_cumprod)


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


PLACE = '`002` 4.3, "This uses the formula"; `003` 1'
BAR = '`002` 4.1, "A key insight is that we can derive"'
PART = Part(
    (
        Task(
            make_alphas_cumprod,
            lambda function: function(BETAS.clone()),
            BAR,
            (
                Mistake(
                    "the product of the betas themselves",
                    lambda betas: torch.cumprod(betas, 0),
                    "A step adds the variance beta; what fraction of the variance does it keep?",
                    BAR,
                ),
                Mistake(
                    "a sum where a product belongs",
                    lambda betas: 1 - torch.cumsum(betas, 0),
                    "Two steps each keep nine tenths of the variance: how much do both together keep?",
                    BAR,
                ),
                Mistake(
                    "an index off by one: the first entry is 1, and the last step is missing",
                    lambda betas: torch.cat([torch.ones(1), torch.cumprod(1 - betas, 0)[:-1]]),
                    "Entry 0 is already one step of noise; the clean image has no entry.",
                    BAR,
                ),
            ),
        ),
        Task(
            add_noise,
            lambda function: function(
                randn(4, 4, 4, 4), randn(4, 4, 4, 4, seed=1), torch.tensor([1, 300, 700, 999]), ALPHAS.clone()
            ),
            PLACE,
            (
                Mistake(
                    "alpha-bar where its root belongs",
                    rates(lambda a: (a, 1 - a)),
                    "By which factor do you multiply a number, so that its variance is multiplied by alpha-bar?",
                    PLACE,
                ),
                Mistake(
                    "signal and noise exchanged",
                    rates(lambda a: ((1 - a) ** 0.5, a**0.5)),
                    "At timestep 1 there should be almost no noise; is there?",
                    PLACE,
                ),
                Mistake(
                    "a noise rate that makes the rates, not their squares, add up to one",
                    rates(lambda a: (a**0.5, 1 - a**0.5)),
                    "Which two numbers have to add up to one, so that the variance stays one?",
                    PLACE,
                ),
                Mistake(
                    "the timestep's index off by one",
                    earlier,
                    "The notes count from 1, the code from 0: which entry belongs to the first step here?",
                    PLACE,
                ),
                Mistake(
                    "each image's level applied along the width instead of the batch",
                    along_the_width,
                    "(b,) and (b, c, h, w): from which side does broadcasting align shapes?",
                    "the argument `alphas_cumprod`; PyTorch's notes on broadcasting",
                ),
                Mistake(
                    "noise of its own, where the one that is given belongs",
                    own_noise,
                    "The loss compares with the noise that was added: who else has to know it?",
                    PLACE,
                ),
            ),
        ),
    ),
    image,
)
