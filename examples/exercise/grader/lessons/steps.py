"""Part 2: how the known mistakes with a step of DDPM and of DDIM are recognised."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from exercise.grader.mistakes.ddim import DDIM, DDIM_STEP
from exercise.grader.mistakes.ddpm import DDPM_STEP, MEAN
from exercise.grader.part import Part, Task
from exercise.grader.seen import Case, calling
from exercise.grader.world import ALPHAS, BETAS, captioned, predicting_noise, randn, scheduler_of, toybox
from minti.images import to_pil
from minti.sampling import classifier_free_guidance


def ddpm_step(latents: Tensor, noise: Tensor, z: Tensor, t: int, betas: Tensor, alphas_cumprod: Tensor) -> Tensor:
    scheduler = scheduler_of(alphas_cumprod)
    clean = scheduler.clean_from_noise(latents, noise, t)
    mean, variance = scheduler.posterior(clean, latents, t, t - 1, "beta")
    return mean + variance**0.5 * z if t > 0 else mean


def ddim_step(latents: Tensor, noise: Tensor, t: int, s: int, alphas_cumprod: Tensor) -> Tensor:
    scheduler = scheduler_of(alphas_cumprod)
    return scheduler.add_noise(scheduler.clean_from_noise(latents, noise, t), noise, scheduler.level(s))


def image(mine: Any) -> Image.Image:
    """Four toys in fifteen steps of DDIM."""
    model, prompts = toybox(), ["a red star", "a blue moon", "a yellow cross", "a green heart"]
    with torch.no_grad():
        context, empty = model.encode_prompt(prompts), model.encode_prompt([""] * 4)
        predict = classifier_free_guidance(predicting_noise(model).unet, context, empty, 5.0)
        alphas_cumprod = model.scheduler.alphas_cumprod
        latents = randn(*model.latents_shape(4))
        stops = model.scheduler.timesteps(15)
        for t, s in zip(stops, [*stops[1:], -1]):
            latents = mine.ddim_step(latents, predict(latents, t), t, s, alphas_cumprod)
        return captioned(to_pil(model.decode(latents)), prompts, columns=4)


SMALL = {"betas": torch.tensor([0.19, 0.36]), "alphas_cumprod": torch.tensor([0.81, 0.5184])}


def ddpm_case(x: Tensor | float, e: Tensor | float, z: Tensor | float, t: int, schedule: dict[str, Tensor]) -> Case:
    latents = {"latents": x, "noise": e, "z": z}
    return {name: torch.as_tensor(value, dtype=torch.float32) for name, value in latents.items()} | {"t": t} | schedule


def ddim_case(x: Tensor | float, e: Tensor | float, t: int, s: int, alphas_cumprod: Tensor) -> Case:
    latents = {"latents": x, "noise": e}
    case = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in latents.items()}
    return case | {"t": t, "s": s, "alphas_cumprod": alphas_cumprod}


X, E, Z = (randn(2, 4, 4, 4, seed=seed) for seed in range(3))
LEVELS = torch.tensor([0.9604, 0.64, 0.36])
PART = Part(
    (
        Task(
            ddpm_step,
            calling(
                *(ddpm_case(*one, t, SMALL) for t in (1, 0) for one in ((1, 0, 0), (0, 1, 0), (0, 0, 1))),
                *(ddpm_case(X, E, Z, t, {"betas": BETAS, "alphas_cumprod": ALPHAS}) for t in (700, 1, 0)),
            ),
            MEAN,
            DDPM_STEP,
        ),
        Task(
            ddim_step,
            calling(
                *(
                    ddim_case(*one, t, s, LEVELS)
                    for t, s in ((2, 1), (1, -1), (0, -1), (1, 0))
                    for one in ((1, 0), (0, 1))
                ),
                *(ddim_case(X, E, t, s, ALPHAS) for t, s in ((900, 850), (51, 1), (1, -1), (1, 0), (0, -1))),
            ),
            DDIM,
            DDIM_STEP,
        ),
    ),
    image,
)
