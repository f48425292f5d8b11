"""Part 7: how the known mistakes with the loop are recognised (exercise E4, task 3a)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

import minti
from exercise.grader.part import Mistake, Part, Task
from exercise.grader.world import captioned, chart, predicting_noise, randn, seeded, toybox, toys
from minti.adapter import Adapter
from minti.textual_inversion import LearnedEmbedding, TrainingImages
from minti.training import Trainer

TEMPLATES = ("a photo of a {}", "a {}", "a picture of a {}")


def learn(steps: int, draw: Callable[[], Any], loss: Callable[[Any], Tensor], optimizer: Optimizer) -> list[float]:
    adapter = Adapter()  # what it trains is what the optimizer has
    adapter.trainable = lambda: [each for group in optimizer.param_groups for each in group["params"]]
    model = toybox()
    trainer = Trainer(model, adapter, lambda _: draw(), lambda _, batch: loss(batch), optimizer, steps, seeded())
    return [step.loss for step in trainer]


def looping(
    zeroed: bool = True, fresh: bool = True, extra: int = 0, order: str = "backward step", shown: str = "each"
) -> Callable[..., list[float]]:
    """The loop with one thing otherwise."""

    def function(steps: int, draw: Callable, loss: Callable, optimizer: Optimizer) -> list[float]:
        losses, kept = [], None
        for _ in range(steps + extra):
            batch = kept = draw() if fresh or kept is None else kept
            value = loss(batch)
            if zeroed and order == "backward step":
                optimizer.zero_grad()
            actions = {"backward": value.backward, "step": optimizer.step, "zero": optimizer.zero_grad}
            for action in order.split():
                actions[action]()
            numbers = {"each": value, "sum": value.detach() + sum(losses[-1:])}
            losses.append(value if shown == "tensor" else numbers[shown].item())
        return losses

    return function


def image(mine: Any) -> Image.Image:
    """A word learned in sixty steps by the learner's loss and loop: its validation loss, and samples with it."""
    model, (images, _) = toybox(), toys()
    layer = model.text_encoder.get_input_embeddings()
    if "<mine>" not in model.words:
        model.add_word("<mine>", layer.weight[[model.tokenizer("toy").input_ids[1]]])
    word, data = LearnedEmbedding(layer, model.words["<mine>"]), TrainingImages(model, images)
    wrapper, generator, optimizer = predicting_noise(model), seeded(), AdamW(word.trainable(), lr=0.02)
    prompts = [template.replace("{}", "<mine>") for template in TEMPLATES]
    fixed, validation, batches = data.batch(32, prompts, seeded(1)), [], count()

    def loss(batch: Any, generator: torch.Generator = generator) -> Tensor:
        context = model.encode_prompt(batch.prompts)
        return mine.diffusion_loss(wrapper, batch.latents, batch.timesteps, context, generator)

    def draw() -> Any:
        if next(batches) % 10 == 0:
            with torch.no_grad():
                validation.append(loss(fixed, seeded(2)).item())
        return data.batch(4, prompts, generator)

    with word.attached(model):
        mine.learn(60, draw, loss, optimizer)
        draw()  # once more, for the validation loss at the end
        said = ["a photo of a <mine>", "a sketch of a <mine>", "a <mine> next to a blue star"]
        options = {"num_inference_steps": 15, "sampler": "ddim", "generator": seeded(1)}
        drawn = minti.sample(model, said, **options)
    curve = chart("A word is learned", {"validation loss": validation}, range(0, 61, 10), ("step", "loss"))
    side = drawn[0].size
    shown = [*(each.resize(side) for each in images[:2]), *drawn]
    strip = captioned(shown, ["training image"] * 2 + [said[0], said[1], "beside a blue star"], 5)
    whole = Image.new("RGB", (strip.width, curve.height + strip.height), "white")
    whole.paste(curve, ((strip.width - curve.width) // 2, 0))
    whole.paste(strip, (0, curve.height))
    return whole


def probe(function: Callable[..., list[float]]) -> list[Any]:
    """Fits three numbers to batches that come one by one; the losses, the numbers, and how often was drawn."""
    row, drawn = nn.Parameter(torch.zeros(3)), []

    def batches() -> Iterator[Tensor]:
        for seed in range(100):
            drawn.append(seed)
            yield randn(4, 3, seed=seed) + 1

    optimizer, stream = torch.optim.SGD([row], lr=0.1), batches()
    losses = function(5, lambda: next(stream), lambda batch: ((batch - row) ** 2).mean(), optimizer)
    return [losses, row.detach(), len(drawn)]


ALGORITHM, TASK = (
    "`002` 4.4, training; `001`, Algorithm 1",
    '`000`, task 3a; `003` 27, "Initialize Gradients" to "Weight Update"',
)
PART = Part(
    (
        Task(
            learn,
            probe,
            TASK,
            (
                Mistake(
                    "the gradients of earlier steps never cleared",
                    looping(zeroed=False),
                    "`backward` adds to `.grad`; what is in it from the step before?",
                    TASK,
                ),
                Mistake(
                    "one batch drawn for all steps",
                    looping(fresh=False),
                    "How often is `draw` called?",
                    ALGORITHM,
                ),
                Mistake(
                    "the step taken before the gradient is there",
                    looping(order="step zero backward"),
                    "Which gradient does the optimizer see in the first step?",
                    ALGORITHM,
                ),
                Mistake(
                    "the gradient cleared between backward and step, so that nothing moves",
                    looping(order="backward zero step"),
                    "What is in `.grad` when the optimizer's step reads it?",
                    TASK,
                ),
                Mistake(
                    "a step too many",
                    looping(extra=1),
                    "`range(n)` has n numbers and starts at 0; how many does yours have?",
                    TASK,
                ),
                Mistake(
                    "losses added up, where each step's own belongs",
                    looping(shown="sum"),
                    "Can a curve of sums ever fall?",
                    TASK,
                ),
                Mistake(
                    "tensors kept, where numbers belong",
                    looping(shown="tensor"),
                    "A loss tensor keeps its whole graph in memory; which method returns its number?",
                    "what `learn` returns",
                ),
            ),
        ),
    ),
    image,
)
