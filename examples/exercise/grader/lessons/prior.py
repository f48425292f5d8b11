"""Part 10: how the known mistakes with prior preservation are recognised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

import minti
from exercise.grader.part import Mistake, Part, Task
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


def probe(function: Callable[..., Tensor]) -> list[Any]:
    """On batches of different sizes; also the gradient of what learns, and how often the loss was asked."""
    asked, row = [], torch.zeros(3, requires_grad=True)

    def loss(batch: Tensor) -> Tensor:
        asked.append(len(batch))
        return ((batch - row) ** 2).mean()

    values = [function(loss, randn(2, 3), 3 * randn(6, 3, seed=1), weight) for weight in (1.0, 0.3)]
    return [*values, *(gradient(value, row) for value in values), len(asked)]


def prompts_probe(function: Callable[..., Any]) -> list[Any]:
    return [function("a photo of a {}", "sks", "toy"), function("a {} in the snow", "zwx", "dog")]


def without_gradient(loss: Callable[[Any], Tensor], instance: Any, prior: Any, weight: float) -> Tensor:
    return loss(instance) + weight * loss(prior).detach()


SUBJECT, BALANCE = '`001`, "How Does DreamBooth Personalize Models?"', '`001`, "We use a special loss to balance"'
CLASS = '`001`, "How Does DreamBooth Avoid Forgetting?"'
PART = Part(
    (
        Task(
            prompts,
            prompts_probe,
            SUBJECT,
            (
                Mistake(
                    "the rare word in the class's prompt as well",
                    lambda template, rare_word, class_word: [template.replace("{}", f"{rare_word} {class_word}")] * 2,
                    "What do the class's images show?",
                    CLASS,
                ),
                Mistake(
                    "the thing called by the rare word alone",
                    lambda template, rare_word, class_word: [
                        template.replace("{}", w) for w in (rare_word, class_word)
                    ],
                    "What tells the model which kind of thing it is?",
                    SUBJECT,
                ),
                Mistake(
                    "the two prompts exchanged",
                    lambda template, rare_word, class_word: prompts(template, rare_word, class_word)[::-1],
                    "Which one is expected first, the subject's or the class's?",
                    SUBJECT,
                ),
                Mistake(
                    "the class before the rare word",
                    lambda template, rare_word, class_word: [
                        template.replace("{}", w) for w in (f"{class_word} {rare_word}", class_word)
                    ],
                    "In which order are they in the text of this part?",
                    SUBJECT,
                ),
                Mistake(
                    "another template than the one that is given",
                    lambda template, rare_word, class_word: prompts("a photo of a {}", rare_word, class_word),
                    "Training uses a different template in every step; which one is this?",
                    "the argument `template`",
                ),
            ),
        ),
        Task(
            prior_loss,
            probe,
            BALANCE,
            (
                Mistake(
                    "lambda forgotten",
                    lambda loss, instance, prior, weight: loss(instance) + loss(prior),
                    "What should the loss be with lambda = 0?",
                    BALANCE,
                ),
                Mistake(
                    "lambda on the thing's loss",
                    lambda loss, instance, prior, weight: weight * loss(instance) + loss(prior),
                    "Which of the two losses should lambda = 0 switch off?",
                    BALANCE,
                ),
                Mistake(
                    "lambda on both",
                    lambda loss, instance, prior, weight: weight * (loss(instance) + loss(prior)),
                    "How does lambda then change the balance of the two losses?",
                    BALANCE,
                ),
                Mistake(
                    "a mean weighted by 1 - lambda and lambda",
                    lambda loss, instance, prior, weight: (1 - weight) * loss(instance) + weight * loss(prior),
                    "With lambda = 1, as in the paper, would the subject be learned at all?",
                    BALANCE,
                ),
                Mistake(
                    "the class's loss subtracted",
                    lambda loss, instance, prior, weight: loss(instance) - weight * loss(prior),
                    "Should training make the class's loss larger?",
                    CLASS,
                ),
                Mistake(
                    "the class's loss without a gradient, so that it holds nothing back",
                    without_gradient,
                    "Does a constant that is added to the loss change any gradient?",
                    CLASS,
                ),
            ),
        ),
    ),
    image,
)
