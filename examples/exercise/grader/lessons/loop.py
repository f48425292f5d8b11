"""Part 7: how the known mistakes with the loop are recognised (exercise E4, task 3a)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

import minti
from exercise.grader.mistakes.loop import COUNTS, LEARN, LEARNED, NUMBERS, ORDER, TASK
from exercise.grader.part import Part, Task
from exercise.grader.seen import Seen
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
    curve = chart(
        "The validation loss, as a word is learned",
        {"loss of the noise": validation},
        range(0, 61, 10),
        ("step", "loss"),
    )
    side = drawn[0].size
    shown = [*(each.resize(side) for each in images[:2]), *drawn]
    strip = captioned(shown, ["training image"] * 2 + [said[0], said[1], "beside a blue star"], 5)
    whole = Image.new("RGB", (strip.width, curve.height + strip.height), "white")
    whole.paste(curve, ((strip.width - curve.width) // 2, 0))
    whole.paste(strip, (0, curve.height))
    return whole


def run(function: Callable[..., list[float]], steps: int) -> Seen:
    """Fits three numbers to batches that come one by one; what is called, the losses, and the numbers."""
    row, calls = nn.Parameter(torch.zeros(3)), []

    class Stepping(torch.optim.SGD):
        def step(self, closure: Callable | None = None) -> Any:
            calls.append("step")
            return super().step(closure)

    def draw() -> Tensor:
        calls.append("draw")
        return randn(4, 3, seed=calls.count("draw") - 1) + 1

    def loss(batch: Tensor) -> Tensor:
        calls.append("loss")
        return ((batch - row) ** 2).mean()

    row.register_hook(lambda gradient: calls.append("gradient"))
    losses = function(steps, draw, loss, Stepping([row], lr=0.1))
    counts = {key: calls.count(name) for key, name in zip(COUNTS, ("draw", "loss", "gradient", "step"))}
    return counts | {ORDER: " ".join(calls), LEARNED: row.detach(), NUMBERS: losses}


def probe(function: Callable[..., list[float]]) -> Seen:
    """Five steps; and two, so that no number of steps can be written into the code."""
    return run(function, 5) | {"the losses of 2 steps": run(function, 2)[NUMBERS]}


PART = Part((Task(learn, probe, TASK, LEARN),), image)
