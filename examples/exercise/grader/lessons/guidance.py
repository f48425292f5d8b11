"""Part 3: how the known mistakes with classifier-free guidance and its cost are recognised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import minti
from exercise.grader.part import Mistake, Part, Task
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


def combination(of_uncond: Callable[[float], float], of_cond: Callable[[float], float]) -> Callable[..., Tensor]:
    return lambda uncond, cond, scale: of_uncond(scale) * uncond + of_cond(scale) * cond


def guided_probe(function: Callable[..., Tensor]) -> list[Tensor]:
    a, b = randn(2, 4, 4, 4), randn(2, 4, 4, 4, seed=1)
    return [function(a.clone(), b.clone(), scale) for scale in (7.5, 1.0, 0.0)]


def evaluations_probe(function: Callable[..., int]) -> list[int]:
    return [
        function(*case)
        for case in ((4, 50, 7.5, 1), (4, 50, 1.0, 1), (4, 50, 7.5, 3), (1, 7, 2.0, 4), (3, 9, 5.0, 3), (2, 6, 0.0, 4))
    ]


SCALE, W = '`002` 7.4, "Combine them using guidance scale"; `003` 6', '`002` 15, "At generation time, the outputs"'
COST = "the text of this part; `000` question 2"
PART = Part(
    (
        Task(
            guided,
            guided_probe,
            SCALE,
            (
                Mistake(
                    "the two predictions exchanged",
                    combination(lambda s: s, lambda s: 1 - s),
                    "Which prediction should remain at scale 1?",
                    SCALE,
                ),
                Mistake(
                    "w taken for the guidance scale s = w + 1",
                    combination(lambda s: -s, lambda s: 1 + s),
                    "Papers count in two ways: which one gives the prompt's prediction at scale 1?",
                    W,
                ),
                Mistake(
                    "the scale on the prompt's prediction only",
                    combination(lambda s: 1, lambda s: s),
                    "What does the scale multiply, in this part's formula?",
                    SCALE,
                ),
                Mistake(
                    "the difference alone, from nowhere",
                    combination(lambda s: -s, lambda s: s),
                    "Which prediction is the difference added to?",
                    SCALE,
                ),
                Mistake(
                    "s - 1 in the formula that has s",
                    combination(lambda s: 2 - s, lambda s: s - 1),
                    "Which of the two formulas has w, and to which prediction does it add the difference?",
                    W,
                ),
            ),
        ),
        Task(
            evaluations,
            evaluations_probe,
            COST,
            (
                Mistake(
                    "the unconditional prediction not counted",
                    lambda pictures, steps, scale, every: pictures * steps,
                    "How often does the network see each image, in a step?",
                    COST,
                ),
                Mistake(
                    "scale 1 counted like any other",
                    lambda pictures, steps, scale, every: pictures * (steps + -(-steps // every)),
                    "Which prediction has weight 0 there?",
                    COST,
                ),
                Mistake(
                    "steps divided by k and rounded down: the first step computes it, too",
                    lambda pictures, steps, scale, every: pictures * (steps + (steps // every if scale != 1 else 0)),
                    "Of 7 steps with k = 4, in which ones is it computed? Count from the first.",
                    COST,
                ),
                Mistake(
                    "one unconditional prediction for all images",
                    lambda pictures, steps, scale, every: pictures * steps + (-(-steps // every) if scale != 1 else 0),
                    "It depends on the latents, too, and after the first step no two images share those.",
                    COST,
                ),
                Mistake(
                    "both predictions in every step, whatever k is",
                    lambda pictures, steps, scale, every: pictures * steps * (2 if scale != 1 else 1),
                    "In which steps is the unconditional one computed anew?",
                    COST,
                ),
            ),
        ),
    ),
    image,
)
