"""Part 3: how the known mistakes with classifier-free guidance and its cost are recognised."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

import minti
from exercise.grader.mistakes.guidance import COST, EVALUATIONS, GUIDED, SCALE
from exercise.grader.part import Part, Task
from exercise.grader.seen import Case, calling
from exercise.grader.world import captioned, randn, toybox
from minti.denoising import Predict
from minti.guidance.conditions import Conditions
from minti.sampling import Counter, Network, classifier_free_guidance, conditional


def guided(uncond: Tensor, cond: Tensor, scale: float) -> Tensor:
    def network(latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:  # context: 1 with the prompt, 0 without
        return torch.cat([cond if half.any() else uncond for half in context.split(len(cond))])

    prompt = torch.ones(len(cond), 1, 1)
    return classifier_free_guidance(network, prompt, torch.zeros_like(prompt), scale)(uncond, 0)


def evaluations(pictures: int, steps: int, scale: float, every: int) -> int:
    network, context = Counter(lambda latents, timesteps, context: latents), torch.zeros(pictures, 1, 1)
    predict = Conditions(toybox(), refresh_every=every)(network, context, context, scale)
    for t in range(steps):
        predict(torch.zeros(pictures, 1, 1, 1), t)
    return network.evaluations


def image(mine: Any) -> Image.Image:
    """Two prompts, each at five scales, from one noise."""
    model, scales = toybox(), (0.0, 1.0, 3.0, 5.0, 10.0)
    said = ("a blue heart with a yellow belt", "a sketch of a red star")
    prompts = [prompt for prompt in said for _ in scales]

    def of_the_learner(network: Network, context: Tensor, negative: Tensor, scale: float) -> Predict:
        uncond, cond = conditional(network, negative), conditional(network, context)

        def predict(latents: Tensor, t: int) -> Tensor:
            each = zip(uncond(latents, t).split(1), cond(latents, t).split(1), scales * 2)
            return torch.cat([mine.guided(*one) for one in each])

        return predict

    latents = randn(*model.latents_shape(1), seed=3)
    options = {"num_inference_steps": 10, "sampler": "ddim", "latents": latents, "cfg": of_the_learner}
    drawn = minti.sample(model, prompts, **options)
    return captioned(drawn, [f"scale {scale:g}" for scale in scales] * 2, len(scales), said)


def two(uncond: float, cond: float, scale: float) -> Case:
    return {"uncond": torch.full((1, 1, 1, 1), uncond), "cond": torch.full((1, 1, 1, 1), cond), "scale": scale}


def counts(pictures: int, steps: int, scale: float, every: int) -> Case:
    return {"pictures": pictures, "steps": steps, "scale": scale, "every": every}


BOTH = {"uncond": randn(2, 4, 4, 4), "cond": randn(2, 4, 4, 4, seed=1)}
SOME = (
    *((1, 1, 3.0, 1), (1, 2, 3.0, 1), (1, 4, 3.0, 2), (1, 7, 3.0, 4), (1, 9, 3.0, 4), (1, 5, 1.0, 2)),
    *((1, 5, 0.0, 2), (1, 5, 0.5, 2), (1, 5, 1.1, 2), (2, 5, 3.0, 2), (2, 5, 1.0, 2)),
    *((4, 50, 7.5, 1), (4, 50, 7.5, 3), (3, 9, 5.0, 3), (3, 10, 5.0, 20)),
)
PART = Part(
    (
        Task(
            guided,
            calling(
                *(two(*pair, scale) for scale in (3.0, 1.0, 0.0, 0.5) for pair in ((1.0, 0.0), (0.0, 1.0))),
                *(BOTH | {"scale": scale} for scale in (7.5, 1.0, 0.0, -1.0)),
            ),
            SCALE,
            GUIDED,
        ),
        Task(evaluations, calling(*(counts(*each) for each in SOME)), COST, EVALUATIONS),
    ),
    image,
)
