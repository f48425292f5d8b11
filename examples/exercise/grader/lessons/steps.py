"""Part 2: how the known mistakes with a step of DDPM and of DDIM are recognised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from exercise.grader.part import Mistake, Part, Task
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


def ddpm(
    weight: Callable = lambda beta, a: beta / (1 - a) ** 0.5,
    divisor: Callable = lambda beta, a: (1 - beta) ** 0.5,
    sigma: Callable = lambda beta, t: beta**0.5 * (t > 0),
) -> Callable[..., Tensor]:
    """The step as the notes write it, with something else in one of its places."""

    def function(latents: Tensor, noise: Tensor, z: Tensor, t: int, betas: Tensor, alphas_cumprod: Tensor) -> Tensor:
        beta, a = betas[t], alphas_cumprod[t]
        return (latents - weight(beta, a) * noise) / divisor(beta, a) + sigma(beta, t) * z

    return function


def ddim(
    end: Callable = lambda a: torch.tensor(1.0),
    clean: Callable = lambda x, e, a: (x - (1 - a) ** 0.5 * e) / a**0.5,
    rates: Callable = lambda a_t, a_s: (a_s**0.5, (1 - a_s) ** 0.5),
) -> Callable[..., Tensor]:
    """The same of DDIM; `end` is alpha-bar of s = -1."""

    def function(latents: Tensor, noise: Tensor, t: int, s: int, alphas_cumprod: Tensor) -> Tensor:
        a_t, a_s = alphas_cumprod[t], alphas_cumprod[s] if s >= 0 else end(alphas_cumprod)
        signal, noisy = rates(a_t, a_s)
        return signal * clean(latents, noise, a_t) + noisy * noise

    return function


def posterior(beta: Tensor, t: int) -> Tensor:
    """The deviation that belongs to the other choice of sigma_t."""
    before = ALPHAS[t - 1] if t > 0 else torch.tensor(1.0)
    return ((1 - before) / (1 - ALPHAS[t]) * beta) ** 0.5


def zero_is_clean(latents: Tensor, noise: Tensor, t: int, s: int, alphas_cumprod: Tensor) -> Tensor:
    return ddim_step(latents, noise, t, s if s > 0 else -1, alphas_cumprod)


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


def ddpm_probe(function: Callable[..., Tensor]) -> list[Tensor]:
    x, noise, z = (randn(2, 4, 4, 4, seed=seed) for seed in range(3))
    return [function(x.clone(), noise.clone(), z.clone(), t, BETAS.clone(), ALPHAS.clone()) for t in (700, 1, 0)]


def ddim_probe(function: Callable[..., Tensor]) -> list[Tensor]:
    x, noise = (randn(2, 4, 4, 4, seed=seed) for seed in range(2))
    return [function(x.clone(), noise.clone(), t, s, ALPHAS.clone()) for t, s in ((900, 850), (51, 1), (1, -1), (1, 0))]


MEAN, SIGMA = '`002` 4.4, "Set mean"; `003` 2', '`002` 4.4, "Set covariance", where sigma_t^2 = beta_t'
LAST = '`002` 4.4; `003` 2, "Iterate Backwards"'
DDIM = '`003` 4, "Deterministic Reverse Process", and 15'
CLEAN = '`002` 6.5, "Optimized approach"'
PART = Part(
    (
        Task(
            ddpm_step,
            ddpm_probe,
            MEAN,
            (
                Mistake(
                    "beta as the noise's standard deviation, where its root belongs",
                    ddpm(sigma=lambda beta, t: beta * (t > 0)),
                    "beta is a variance; by what is z multiplied?",
                    SIGMA,
                ),
                Mistake(
                    "noise in the last step, too",
                    ddpm(sigma=lambda beta, t: beta**0.5),
                    "At t = 0 the result is the image; should it be noisy?",
                    LAST,
                ),
                Mistake(
                    "alpha-bar where the step's own alpha belongs",
                    ddpm(divisor=lambda beta, a: a**0.5),
                    "One step reverses the scaling of one step; of how many does alpha-bar?",
                    MEAN,
                ),
                Mistake(
                    "the predicted noise weighted by beta alone",
                    ddpm(weight=lambda beta, a: beta),
                    "The prediction has variance one; how much of it is in x_t?",
                    MEAN,
                ),
                Mistake(
                    "the whole noise taken out at once",
                    ddpm(weight=lambda beta, a: (1 - a) ** 0.5),
                    "This removes all noise at once; how far does one step of DDPM go?",
                    MEAN,
                ),
                Mistake(
                    "1 - alpha-bar where its root belongs",
                    ddpm(weight=lambda beta, a: beta / (1 - a)),
                    "1 - alpha-bar is a variance; by what is the noise multiplied in x_t?",
                    MEAN,
                ),
                Mistake(
                    "the posterior's variance, where beta_t is asked for",
                    ddpm(sigma=posterior),
                    "DDPM allows both; which one is in this part's formula?",
                    SIGMA,
                ),
            ),
        ),
        Task(
            ddim_step,
            ddim_probe,
            DDIM,
            (
                Mistake(
                    "alpha-bar of s = -1 read from the list's other end",
                    ddim(end=lambda a: a[-1]),
                    "In Python, index -1 is the last entry, the noisiest timestep; what does s = -1 mean here?",
                    DDIM,
                ),
                Mistake(
                    "the noise put back at the level of t, not of s",
                    ddim(rates=lambda a_t, a_s: (a_s**0.5, (1 - a_t) ** 0.5)),
                    "To which timestep does the step go?",
                    DDIM,
                ),
                Mistake(
                    "alpha-bar where its root belongs, in the predicted clean image",
                    ddim(clean=lambda x, e, a: (x - (1 - a) ** 0.5 * e) / a),
                    "Solve x_t = sqrt(alpha-bar) x_0 + ... for x_0.",
                    CLEAN,
                ),
                Mistake(
                    "no noise put back",
                    ddim(rates=lambda a_t, a_s: (a_s**0.5, torch.tensor(0.0))),
                    "Is the image at s still noisy, and what does the network expect there?",
                    DDIM,
                ),
                Mistake(
                    "s = 0 taken for the clean image",
                    zero_is_clean,
                    "Entry 0 is already one step of noise; which s is the clean image?",
                    "the argument `s`",
                ),
            ),
        ),
    ),
    image,
)
