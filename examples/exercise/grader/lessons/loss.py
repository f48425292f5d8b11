"""Part 5: how the known mistakes with the loss are recognised (exercise E4, task 1)."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import minti
from exercise.grader.compare import same
from exercise.grader.mistakes.latents import ENCODED, OTHER, SAME, SAMPLES, SCALED_LATENTS
from exercise.grader.mistakes.loss import DIFFUSION_LOSS, GRADIENT, OFF, PLACE
from exercise.grader.mistakes.noise import ANOTHER, CALLS, NOISY, PROMPTS, TOLD
from exercise.grader.part import Part, Task
from exercise.grader.seen import Seen
from exercise.grader.world import SCHEDULER, chart, gradient, predicting_noise, randn, seeded, toybox, toys


def scaled_latents(encoded: Any, generator: torch.Generator, scaling_factor: float) -> Tensor:
    return encoded.sample(generator) * scaling_factor  # `StableDiffusion.scale`


def diffusion_loss(
    wrapper: Any, latents: Tensor, timestep_idx: Tensor, embeddings: Tensor, generator: torch.Generator
) -> Tensor:
    return minti.diffusion_loss(wrapper, latents, timestep_idx, embeddings, generator=generator)


def image(mine: Any) -> Image.Image:
    """The loss over timesteps with three prompts: the right one, a wrong one and none."""
    model, (_, pixels) = toybox(), toys()
    wrapper = predicting_noise(model)
    timesteps = list(range(20, 1000, 120))
    prompts = ("a red diamond with a pink belt", "a green moon", "")
    with torch.no_grad():
        latents = mine.scaled_latents(model.encode(pixels), seeded(), model.vae.config.scaling_factor)

        def losses(prompt: str) -> list[float]:
            context = model.encode_prompt([prompt] * len(latents))
            told = (torch.full((len(latents),), t) for t in timesteps)
            return [float(mine.diffusion_loss(wrapper, latents, t, context, seeded(1))) for t in told]

        lines = {prompt or "(no words)": losses(prompt) for prompt in prompts}
    return chart("A red diamond's loss, by prompt", lines, timesteps, ("timestep", "noise loss"), logarithmic=True)


def encoded(mean: Tensor, std: Tensor) -> SimpleNamespace:
    """The VAE encoder's distribution."""
    sample = lambda generator=None: mean + std * torch.randn(mean.shape, generator=generator)  # noqa: E731
    return SimpleNamespace(mean=mean, std=std, sample=sample, mode=lambda: mean)


def scaled_probe(function: Callable[..., Tensor]) -> Seen:
    """Of a distribution that has a single value, and of one at random, twice from one generator."""
    certain, spread = encoded(torch.full((1, 1, 1, 1), 4.0), torch.zeros(1, 1, 1, 1)), encoded(*SPREAD)

    def samples(seed: int) -> list[Tensor]:
        generator = seeded(seed)
        torch.randn(1, generator=generator)  # so that it is not as it was when it was made
        return [function(spread, generator, 0.13) for _ in range(2)]

    first, second, other = samples(2), samples(2), samples(3)
    return {
        "a distribution that is always 4, scaling_factor = 0.5": function(certain, seeded(), 0.5),
        SAMPLES: first,
        SAME: same(first, second),
        OTHER: not same(first, other),
    }


def loss_probe(function: Callable[..., Tensor]) -> Seen:
    """On a network whose answer depends on all that it is given; what it is given, and the embeddings' gradient."""
    words, nothing = randn(3, 5, 8, seed=1).requires_grad_(True), (None, None, None)

    def loss(generator: torch.Generator, side: int = 1, steps: tuple = (10, 400, 900)) -> tuple[Tensor, list[tuple]]:
        heard = []

        def unet(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
            heard.append((x.detach().clone(), t.clone(), same(context, words)))
            return 0.5 * x + torch.cos(t.float())[:, None, None, None] + context.mean()

        wrapper = SimpleNamespace(unet=unet, scheduler=SCHEDULER)
        return function(wrapper, randn(3, 1, side, 2), torch.tensor(steps), words, generator), heard

    generator = seeded(2)
    torch.randn(1, generator=generator)  # so that it is not as it was when it was made
    (value, heard), (again, _) = (loss(generator) for _ in range(2))
    noisy, told, prompts = (heard or [nothing])[0]
    (first, one), (second, _), (_, other) = (loss(seeded(seed)) for seed in (4, 4, 5))
    whole, _ = loss(seeded(2), 8, (1, 500, 998))
    return {
        CALLS: len(heard),
        SAME: same(first, second),
        ANOTHER: not one or not other or not same(one[0][0], other[0][0]),
        NOISY: noisy,
        TOLD: told,
        PROMPTS: prompts,
        **{says: function(*nearly_right(off), words, seeded(2)) for off, says in OFF.items()},
        "the loss of a batch of three": value,
        GRADIENT: gradient(value, words),
        "the loss of larger images": whole,
        "its gradient": gradient(whole, words),
        "the loss of a second call with the same generator": again,
    }


def nearly_right(off: float) -> tuple[SimpleNamespace, Tensor, Tensor]:
    """A network whose prediction is the noise that was added, and `off` more; clean latents; timesteps."""
    latents, timesteps = torch.ones(2, 1, 1, 1), torch.tensor([400, 600])
    unet = lambda x, t, context: SCHEDULER.noise_from_clean(x, latents, timesteps) + off  # noqa: E731
    return SimpleNamespace(unet=unet, scheduler=SCHEDULER), latents, timesteps


SPREAD = 2 * randn(2, 4, 4, 4), randn(2, 4, 4, 4, seed=1).abs()
PART = Part(
    (
        Task(scaled_latents, scaled_probe, ENCODED, SCALED_LATENTS),
        Task(diffusion_loss, loss_probe, PLACE, DIFFUSION_LOSS),
    ),
    image,
)
