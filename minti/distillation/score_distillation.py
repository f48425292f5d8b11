"""Score distillation sampling (SDS, DDS): optimizes any differentiable image by the score of a frozen model.

A drawing x = g(theta) is noised, the network says what noise it sees, and theta moves by how that differs from the
noise that was added, the network's own Jacobian left out (DreamFusion, arXiv 2209.14988, eq. 3; slides `001`):

    grad_theta L = E_{t, epsilon}[w(t) (epsilon_hat(x_t; y, t) - epsilon) dx / dtheta],   w(t) = 1 - alpha-bar_t

An edit of a drawing compares with a source instead, noised alike: the network's bias cancels
(delta denoising score, arXiv 2304.07090, eq. 3). It is the one loop, with another draw and another loss.
"""

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
    """What learns: its parameters are theta, and calling it gives g(theta), scaled latents (b, c, h, w). This one is
    the latents themselves; others draw pixels and encode them."""

    name = "the drawing"

    def __init__(self, latents: Tensor):
        super().__init__()
        self.latents = torch.nn.Parameter(latents.clone())

    def forward(self) -> Tensor:
        return self.latents


class Draw(NamedTuple):
    """The randomness of a step: a timestep, and noise (b, c, h, w)."""

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
    """The loop whose steps make the drawing what its prompts say; it trains with Adam.

    Args:
        prompts: one for each of the drawing's pictures.
        timesteps: the share of the schedule that is drawn from, for all pictures at once.
        source: latents, scaled, and the prompts that they show: the edit's comparison.
        jacobian: goes through the network too, down the whole gradient of w / 2 |epsilon_hat - epsilon|².

    Raises ValueError: a range of timesteps that is empty, shapes that do not fit; jacobian together with a source.
    """
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
    """The guided prediction for so many pictures. Raises ValueError: another number of prompts."""
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
    """A number, (), whose gradient with respect to the latents, (b, c, h, w), is w (epsilon_hat - epsilon)."""
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
