"""Part 5: how the known mistakes with the loss are recognised (exercise E4, task 1)."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import minti
from exercise.grader.part import Mistake, Part, Task
from exercise.grader.world import SCHEDULER, chart, gradient, predicting_noise, randn, seeded, toybox, toys


def scaled_latents(encoded: Any, generator: torch.Generator, scaling_factor: float) -> Tensor:
    return encoded.sample(generator) * scaling_factor  # `StableDiffusion.scale`


def diffusion_loss(
    wrapper: Any, latents: Tensor, timestep_idx: Tensor, embeddings: Tensor, generator: torch.Generator
) -> Tensor:
    return minti.diffusion_loss(wrapper, latents, timestep_idx, embeddings, generator=generator)


def losing(
    noisy: Callable = lambda x, noise, again, t: SCHEDULER.add_noise(x, noise, t),
    target: Callable = lambda x, noise, again: noise,
    told: Callable = lambda t: t,
    reduced: Callable = lambda squares: squares.mean(),
) -> Callable[..., Tensor]:
    """The loss with something else in one of its places; `again` is noise that was drawn after `noise`."""

    def function(
        wrapper: Any, latents: Tensor, timestep_idx: Tensor, embeddings: Tensor, generator: torch.Generator
    ) -> Tensor:
        noise, again = (torch.randn(latents.shape, generator=generator) for _ in range(2))
        prediction = wrapper.unet(noisy(latents, noise, again, timestep_idx), told(timestep_idx), embeddings)
        return reduced((prediction - target(latents, noise, again)) ** 2)

    return function


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


def scaled_probe(function: Callable[..., Tensor]) -> Tensor:
    mean, std = randn(2, 4, 4, 4), randn(2, 4, 4, 4, seed=1).abs()
    sample = lambda generator=None: mean + std * torch.randn(mean.shape, generator=generator)  # noqa: E731
    return function(SimpleNamespace(mean=mean, std=std, sample=sample), seeded(2), 0.18215)


def loss_probe(function: Callable[..., Tensor]) -> list[Any]:
    """On a network whose answer depends on all that it is given, and from one seed; the embeddings' gradient, too."""
    unet = lambda x, t, context: 0.5 * x + torch.cos(t.float())[:, None, None, None] + context.mean()  # noqa: E731
    wrapper = SimpleNamespace(unet=unet, scheduler=SCHEDULER)
    words = randn(3, 5, 8, seed=1).requires_grad_(True)
    values = [
        function(wrapper, randn(3, 4, 4, 4), torch.tensor(steps), words, seeded(2))
        for steps in ([10, 400, 900], [1, 500, 998])
    ]
    return [*values, *(gradient(value, words) for value in values)]


def unseeded(*arguments: Any) -> Tensor:
    return diffusion_loss(*arguments[:-1], None)


ENCODED, LOSS = "the argument `scaling_factor`; of the VAE, `003` 8", "`002` 4.3; `000`, task 1; `003` 26"
PART = Part(
    (
        Task(
            scaled_latents,
            scaled_probe,
            ENCODED,
            (
                Mistake(
                    "the scaling factor forgotten",
                    lambda encoded, generator, scaling_factor: encoded.sample(generator),
                    "The UNet was trained on latents of about variance one; what is the VAE's?",
                    ENCODED,
                ),
                Mistake(
                    "divided by the scaling factor",
                    lambda encoded, generator, scaling_factor: encoded.sample(generator) / scaling_factor,
                    "That is the direction for decoding. Which direction makes the numbers smaller?",
                    ENCODED,
                ),
                Mistake(
                    "drawn without the generator that is given",
                    lambda encoded, generator, scaling_factor: encoded.sample() * scaling_factor,
                    "Would another run with the same seed get the same latents?",
                    "the argument `encoded`",
                ),
                Mistake(
                    "the distribution's mean, where a sample belongs",
                    lambda encoded, generator, scaling_factor: encoded.mean * scaling_factor,
                    "The encoder returns a distribution; what do you take from it?",
                    "the argument `encoded`",
                ),
            ),
        ),
        Task(
            diffusion_loss,
            loss_probe,
            LOSS,
            (
                Mistake(
                    "the noise drawn twice",
                    losing(target=lambda x, noise, again: again),
                    "Can the network predict noise that is not in the image?",
                    LOSS,
                ),
                Mistake(
                    "the clean latents as the target",
                    losing(target=lambda x, noise, again: x),
                    "What does this network predict?",
                    LOSS,
                ),
                Mistake(
                    "the clean latents shown to the network",
                    losing(noisy=lambda x, noise, again, t: x),
                    "Which latents is the network to find the noise in?",
                    LOSS,
                ),
                Mistake(
                    "noise added without the schedule",
                    losing(noisy=lambda x, noise, again, t: x + noise),
                    "How much noise belongs to timestep t? `wrapper.scheduler` knows.",
                    LOSS,
                ),
                Mistake(
                    "the network told another timestep, off by one",
                    losing(told=lambda t: t + 1),
                    "At which timestep was the noise added?",
                    LOSS,
                ),
                Mistake(
                    "a sum of squares, where a mean belongs",
                    losing(reduced=lambda squares: squares.sum()),
                    "Should a larger image need a smaller learning rate?",
                    LOSS,
                ),
                Mistake(
                    "noise that does not come from the generator",
                    unseeded,
                    "Would another run with the same seed get the same noise?",
                    "the argument `generator`",
                ),
                Mistake(
                    "right as a number, but without a gradient, so that nothing could be learned",
                    torch.no_grad()(diffusion_loss),
                    "What does the optimizer need besides the loss?",
                    LOSS,
                ),
            ),
        ),
    ),
    image,
)
