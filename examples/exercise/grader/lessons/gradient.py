"""Part 11: how the known mistakes with a gradient's guidance are recognised, on a mixture of two Gaussians."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from exercise.grader.compare import same
from exercise.grader.mistakes.gradient import AUTO, GRADIENT_OF, GRADIENTS, GUIDE, GUIDED_NOISE, KEEPS, LEFT, ON
from exercise.grader.part import Part, Task
from exercise.grader.seen import CHANGED, Case, Seen, calling
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


def parabola(x: Tensor) -> Tensor:
    """A standard normal's log-density, but for a constant: its gradient is -x."""
    return -(x**2).flatten(1).sum(1) / 2


def half(x: Tensor) -> Tensor:
    return left(x, ALPHAS[600])


def gradient_probe(function: Callable[..., Tensor]) -> Seen:
    """The gradient, and what the sampler has to live with afterwards."""
    cases = (parabola, torch.tensor([[1.0, 2.0], [3.0, -1.0]])), (half, randn(4, 2)), (parabola, randn(3, 2, 2, 2))
    seen, inputs, results, on = {}, [], [], False
    for name, (log, x) in zip(GRADIENTS, cases):
        inputs.append((x, x.clone()))
        with torch.no_grad():  # as a sampler calls it
            seen[name] = function(log, x)
            on |= torch.is_grad_enabled()
        results.append(seen[name])
    return seen | {
        LEFT: any(x.requires_grad or x.grad is not None for x, _ in inputs),
        KEEPS: any(isinstance(each, Tensor) and each.requires_grad for each in results),
        ON: on,
        CHANGED: "" if all(same(*pair) for pair in inputs) else "x",
    }


def noise_case(noise: float, gradient: float, alpha_bar: float, scale: float) -> Case:
    tensors = {"noise": noise, "gradient": gradient, "alpha_bar": alpha_bar}
    return {name: torch.tensor(value) for name, value in tensors.items()} | {"scale": scale}


PAIR = {"noise": randn(4, 2), "gradient": randn(4, 2, seed=1)}
PART = Part(
    (
        Task(gradient_of, gradient_probe, AUTO, GRADIENT_OF),
        Task(
            guided_noise,
            calling(
                *(noise_case(*each) for each in ((1.0, 0.0, 0.64, 2.0), (0.0, 1.0, 0.64, 1.0), (0.0, 1.0, 0.64, 2.0))),
                *(PAIR | {"alpha_bar": ALPHAS[t], "scale": scale} for t, scale in ((600, 2.0), (100, 1.0), (0, 0.5))),
            ),
            GUIDE,
            GUIDED_NOISE,
        ),
    ),
    image,
)
