"""Part 11: how the known mistakes with a gradient's guidance are recognised, on a mixture of two Gaussians."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from exercise.grader.part import Mistake, Part, Task
from exercise.grader.world import ALPHAS, SCHEDULER, randn

MEANS, STD = torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), 0.5


def gradient_of(log_probability: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        return torch.autograd.grad(log_probability(x).sum(), x)[0]


def guided_noise(noise: Tensor, gradient: Tensor, alpha_bar: Tensor, scale: float) -> Tensor:
    return noise - scale * (1 - alpha_bar) ** 0.5 * gradient  # score(x|y) = score(x) + s grad log p(y|x)


def components(x: Tensor, a: Tensor) -> Tensor:
    """log N(x; sqrt(a) mean, a std^2 + 1 - a) of both halves of the mixture, without what they share: (n, 2)."""
    return -((x[:, None] - a**0.5 * MEANS) ** 2).sum(-1) / (2 * (a * STD**2 + 1 - a))


def left(x: Tensor, a: Tensor) -> Tensor:
    """log p(y = left | x_t), (n,), known exactly."""
    return components(x, a).log_softmax(-1)[:, 0]


def image(mine: Any) -> Image.Image:
    """Points drawn from the mixture by DDIM, guided to its left half, at three scales."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 2.7), layout="constrained")
    stops = list(range(980, -1, -20))
    for i, scale in enumerate((0.0, 1.0, 5.0)):
        x = randn(600, 2)
        for t, s in zip(stops, [*stops[1:], -1]):
            a, on = ALPHAS[t], SCHEDULER.alpha_bar(s)
            noise = -((1 - a) ** 0.5) * gradient_of(lambda x: components(x, a).logsumexp(-1), x)  # noqa: B023
            pull = mine.gradient_of(lambda x: left(x, a), x)  # noqa: B023
            noise = mine.guided_noise(noise, pull, a, scale)
            x = on**0.5 * (x - (1 - a) ** 0.5 * noise) / a**0.5 + (1 - on) ** 0.5 * noise
        axes = figure.add_subplot(1, 3, i + 1, title=f"scale {scale:g}", xlim=(-5, 5), ylim=(-3, 3), aspect="equal")
        axes.scatter(*x.T, s=3)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return Image.open(buffer).convert("RGB")


def gradient_probe(function: Callable[..., Tensor]) -> list[Any]:
    """The gradient, and whether the sampler's x is as it was."""
    x = randn(4, 2)
    with torch.no_grad():  # as a sampler calls it
        return [function(lambda x: left(x, ALPHAS[600]), x), int(x.requires_grad)]


def on_x_itself(log_probability: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    found = gradient_of(log_probability, x)
    x.requires_grad_(True)
    return found


def guiding(kind: Callable[[Tensor], Any], sign: float = -1.0) -> Callable[..., Tensor]:
    return lambda noise, gradient, alpha_bar, scale: noise + sign * scale * kind(alpha_bar) * gradient


def summed(of: Callable[[Tensor], Tensor], sign: float = 1.0) -> Callable[..., Tensor]:
    """A gradient of another number than the sum of the logarithms."""

    def function(log_probability: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            return sign * torch.autograd.grad(of(log_probability(x)), x)[0]

    return function


def noise_probe(function: Callable[..., Tensor]) -> list[Tensor]:
    noise, gradient = randn(4, 2), randn(4, 2, seed=1)
    return [function(noise.clone(), gradient.clone(), ALPHAS[t], scale) for t, scale in ((600, 2.0), (100, 1.0))]


AUTO, GUIDE = "`002` 6.2; `003` 6", "`003` 6, for any classifier; arXiv 2105.05233, Algorithm 2"
PART = Part(
    (
        Task(
            gradient_of,
            gradient_probe,
            AUTO,
            (
                Mistake(
                    "the mean over the batch, so that the guidance depends on the batch size",
                    summed(lambda log: log.mean()),
                    "Should one image's gradient depend on how many others are in the batch?",
                    AUTO,
                ),
                Mistake(
                    "the gradient of the probability, not of its logarithm",
                    summed(lambda log: log.exp().sum()),
                    "Is `log_probability` already a logarithm?",
                    AUTO,
                ),
                Mistake(
                    "the sign of a loss: away from the class",
                    summed(lambda log: log.sum(), -1.0),
                    "In which direction does log p(y | x) grow?",
                    AUTO,
                ),
                Mistake(
                    "right, but the sampler's own x has a gradient from now on",
                    on_x_itself,
                    "The sampler goes on using x. Which tensor could you use instead?",
                    "the argument `x`",
                ),
            ),
        ),
        Task(
            guided_noise,
            noise_probe,
            GUIDE,
            (
                Mistake(
                    "a plus, which steers away from the class",
                    guiding(lambda a: (1 - a) ** 0.5, 1.0),
                    "The score points towards the data; in which direction does the noise point?",
                    GUIDE,
                ),
                Mistake(
                    "the factor of the score forgotten",
                    guiding(lambda a: 1.0),
                    "By which factor do noise and score differ?",
                    '`003` 11, "Connection to Noise Prediction"',
                ),
                Mistake(
                    "1 - alpha-bar where its root belongs",
                    guiding(lambda a: 1 - a),
                    "Is the noise in x_t scaled by a variance or by a standard deviation?",
                    GUIDE,
                ),
                Mistake(
                    "the signal's rate where the noise's belongs",
                    guiding(lambda a: a**0.5),
                    "How strong should guidance be where there is no noise left?",
                    GUIDE,
                ),
                Mistake(
                    "divided by the noise's rate instead of multiplied",
                    guiding(lambda a: (1 - a) ** -0.5),
                    "score = -epsilon / rate; solve it for epsilon.",
                    "`003` 11",
                ),
            ),
        ),
    ),
    image,
)
