"""Score distillation sampling (SDS): optimizes a differentiable image x = g(theta) by the score of a frozen model,
without the network's Jacobian (DreamFusion, arXiv 2209.14988, eq. 3; slides `001`):

    grad_theta L = E_{t, epsilon}[w(t) (epsilon_hat(x_t; y, t) - epsilon) dx / dtheta],   w(t) = 1 - alpha-bar_t

The delta denoising score (DDS, arXiv 2304.07090, eq. 3) edits: in place of epsilon stands the prediction for a source
image with the same noise, so that the network's bias cancels."""

from typing import NamedTuple

import torch
from torch import Tensor

from minti.adapter import Adapter
from minti.denoising import Predict
from minti.model import StableDiffusion
from minti.runs.messages import short_repr
from minti.sampling import Prompts, classifier_free_guidance, encoded
from minti.training import Trainer
from minti.utils import randn


class Drawing(Adapter):
    """The optimized image: its parameters are theta, and calling it gives g(theta), scaled latents (b, c, h, w); here
    the latents themselves. A subclass may encode pixels."""

    name = "the drawing"

    def __init__(self, latents: Tensor):
        super().__init__()
        self.latents = torch.nn.Parameter(latents.clone())

    def forward(self) -> Tensor:
        return self.latents


class Draw(NamedTuple):
    """The batch of a step: a timestep, and noise (b, c, h, w)."""

    timestep: int
    noise: Tensor


def score_distillation(
    model: StableDiffusion,
    drawing: Drawing,
    prompts: Prompts,
    *,
    steps: int = 160,
    guidance_scale: float = 5.0,
    learning_rate: float = 0.05,
    timesteps: tuple[float, float] = (0.02, 0.98),
    source: tuple[Tensor, Prompts] | None = None,
    jacobian: bool = False,
    generator: torch.Generator,
) -> Trainer:
    """A `Trainer` that optimizes the drawing by Adam.

    prompts: one for each of the drawing's images. timesteps: the range that t is drawn from, as shares of the schedule.
    source: scaled latents and their prompts, for an edit by DDS. jacobian: keeps the network's Jacobian, so that the
    gradient is that of w / 2 |epsilon_hat - epsilon|². Raises ValueError: names the option."""
    total, shape = model.scheduler.config.num_train_timesteps, drawing().shape
    low, high = (round(share * (total - 1)) for share in timesteps)
    if not 0 <= low < high < total:
        raise ValueError(f"timesteps = {short_repr(timesteps)}; expected shares of the schedule, rising within [0, 1]")
    if source and source[0].shape != shape:
        raise ValueError(f"the source has shape {tuple(source[0].shape)}; expected the drawing's, {tuple(shape)}")
    if source and jacobian:
        raise ValueError("an edit leaves the network's Jacobian out; give a source or jacobian, not both")
    model.freeze()
    towards = guidance_towards(model, prompts, shape[0], guidance_scale)
    away = source and guidance_towards(model, source[1], shape[0], guidance_scale)

    def draw(generator: torch.Generator) -> Draw:
        t = int(torch.randint(low, high + 1, (), generator=generator))
        return Draw(t, randn(shape, generator, model.device, model.dtype))

    def loss(model: StableDiffusion, batch: Draw) -> Tensor:
        compared = (away, source[0]) if source else None
        return distillation_loss(model, towards, drawing(), batch, compared, jacobian)

    return Trainer(model, drawing, draw, loss, torch.optim.Adam(drawing.trainable(), learning_rate), steps, generator)


def guidance_towards(model: StableDiffusion, prompts: Prompts, count: int, scale: float) -> Predict:
    """The guided prediction for so many images."""
    context = encoded(model, prompts)
    if len(context) != count:
        raise ValueError(f"{len(context)} prompts for {count} pictures; give one for each")
    return classifier_free_guidance(model.unet, context, encoded(model, "", context), scale)


def distillation_loss(
    model: StableDiffusion,
    predict: Predict,
    latents: Tensor,
    draw: Draw,
    source: tuple[Predict, Tensor] | None = None,
    jacobian: bool = False,
) -> Tensor:
    """A loss, (), whose gradient with respect to the latents, (b, c, h, w), is w (epsilon_hat - epsilon)."""
    scheduler, (t, noise) = model.scheduler, draw
    weight = 1 - scheduler.alpha_bar(t)

    def seen(predict: Predict, clean: Tensor) -> Tensor:
        noisy = scheduler.add_noise(clean, noise, t)
        return scheduler.clean_and_noise(predict(noisy, t), noisy, t)[1]

    if jacobian:
        return weight / 2 * (seen(predict, latents) - noise).float().pow(2).sum()
    with torch.no_grad():
        compared = seen(*source) if source else noise
        residual = weight * (seen(predict, latents) - compared)
    # Its value is that of |residual|² / 2, its gradient the residual: a constant times x, whose value is taken away.
    return residual.float().pow(2).sum() / 2 + (residual * (latents - latents.detach())).float().sum()
