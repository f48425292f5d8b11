"""Part 10: how the known mistakes with prior preservation are recognised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

import minti
from exercise.grader.mistakes.prior import BALANCE, CALLS, GRADIENT, PRIOR_LOSS, PROMPTS, SUBJECT
from exercise.grader.part import Part, Task
from exercise.grader.seen import Case, Seen, calling
from exercise.grader.world import chart, gradient, randn


def prompts(template: str, rare_word: str, class_word: str) -> tuple[str, str]:
    config = minti.DreamBoothConfig(placeholder_token=rare_word, initializer_token=class_word)
    subject = f"{config.placeholder_token} {config.initializer_token}"  # as `DreamBooth` calls it
    return template.replace("{}", subject), template.replace("{}", class_word)


def prior_loss(loss: Callable[[Any], Tensor], instance: Any, prior: Any, weight: float) -> Tensor:
    return loss(instance) + weight * loss(prior)  # `dreambooth_loss`


def image(mine: Any) -> Image.Image:
    """A small network learns one point anew; what becomes of all others, with the prior's loss and without."""
    torch.manual_seed(0)
    x, point = torch.linspace(-3, 3, 61)[:, None], torch.tensor([[1.0]])
    old = trained(
        nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1)), lambda y: ((y(x) - x.sin()) ** 2).mean()
    )
    state, before = old.state_dict(), old(x).detach()
    lines = {"before": before[:, 0].tolist()}
    for name, weight in (("after, with the prior", 1.0), ("after, without", 0.0)):
        new = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
        new.load_state_dict(state)
        measure = lambda batch: ((new(batch[0]) - batch[1]) ** 2).mean()  # noqa: B023, E731
        objective = lambda _: mine.prior_loss(measure, (point, point * 2), (x, before), weight)  # noqa: B023, E731
        lines[name] = trained(new, objective)(x)[:, 0].tolist()
    return chart("A point at (1, 2) is learned", lines, x[:, 0].tolist())


def trained(network: nn.Module, loss: Callable[[nn.Module], Tensor]) -> nn.Module:
    for parameter in network.parameters():  # as torch begins, from a seed of its own
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(400):
        optimizer.zero_grad()
        loss(network).backward()
        optimizer.step()
    return network


def probe(function: Callable[..., Tensor]) -> Seen:
    """On batches of different sizes; also the gradient of what learns, and how often the loss was asked."""
    asked, row, seen = [], torch.zeros(3, requires_grad=True), {}

    def loss(batch: Tensor) -> Tensor:
        asked.append(len(batch))
        return ((batch - row) ** 2).mean()

    one, other = torch.ones(1, 3), torch.full((1, 3), 2.0)  # losses of 1 and of 4
    values = []
    for weight in (1.0, 0.5):
        values.append(function(loss, one, other, weight))
        seen[f"losses of 1 (instance) and 4 (prior), weight = {weight:g}"] = values[-1]
    for weight in (1.0, 0.3):
        values.append(function(loss, randn(2, 3), 3 * randn(6, 3, seed=1), weight))
        seen[f"batches of 2 and 6, weight = {weight:g}"] = values[-1]
    return seen | {GRADIENT: [gradient(value, row) for value in values], CALLS: len(asked) / len(values)}


def words(template: str, rare_word: str, class_word: str) -> Case:
    return {"template": template, "rare_word": rare_word, "class_word": class_word}


TEXTS = words("a photo of a {}", "sks", "toy"), words("a {} in the snow", "zwx", "dog")
PART = Part(
    (Task(prompts, calling(*TEXTS), SUBJECT, PROMPTS), Task(prior_loss, probe, BALANCE, PRIOR_LOSS)),
    image,
)
