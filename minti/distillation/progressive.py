"""Progressive distillation (arXiv 2202.00512, Algorithm 2; questions `003`, 31): the student does in one DDIM step what
its teacher does in two, from timestep t to u. Round after round, 16 steps become 8, 4, 2 and 1. alpha and sigma are the
signal and noise rates; the student's clean latents x should be those with which its one step ends at the same z_u:

    x~ = (z_u - (sigma_u / sigma_t) z_t) / (alpha_u - (sigma_u / sigma_t) alpha_t)
    L = max(alpha_t^2 / sigma_t^2, 1) |x - x~|^2
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from minti.adapter import Adapter
from minti.distillation.teacher import Batch, Data, check_timesteps, ddim_steps, trainer
from minti.model import StableDiffusion
from minti.sampling import Network
from minti.scheduler import NoiseScheduler
from minti.training import Trainer


def one_step_target(scheduler: NoiseScheduler, latents: Tensor, end: Tensor, t: Tensor, u: Tensor) -> Tensor:
    """x~, the clean latents with which one DDIM step leads from z_t to z_u, `end`; (b, c, h, w), timesteps (b,)."""
    at, below = scheduler.level(t, latents), scheduler.level(u, latents)
    ratio = below.noise_rate / at.noise_rate
    return (end - ratio * latents) / (below.signal_rate - ratio * at.signal_rate)


def step_loss(
    model: StableDiffusion, latents: Tensor, end: Tensor, t: Tensor, u: Tensor, context: Tensor, huber: float = 0.0
) -> Tensor:
    """The loss of a student whose one step from z_t should end at z_u, wherever the pair is from, () float32.
    `huber`: c of the pseudo-Huber distance sqrt(d^2 + c^2) - c in place of d^2, for sharper images of one step."""
    scheduler = model.scheduler
    target = one_step_target(scheduler, latents, end, t, u)
    clean, _ = scheduler.clean_and_noise(model.unet(latents, t, context), latents, t)
    level = scheduler.level(t, latents)
    # The truncated SNR weight: near pure noise, where the SNR is 0, clean latents count as such.
    weight = (level.signal_rate / level.noise_rate).square().clamp(min=1)
    squares = (weight * (clean - target).square()).float()
    return ((squares + huber**2).sqrt() - huber if huber else squares).mean()


def progressive_loss(model: StableDiffusion, batch: Batch, teacher: Network) -> Tensor:
    """The loss of one round: a batch has timesteps (b, 3), t, the middle and u."""
    end = ddim_steps(model.scheduler, teacher, batch)
    return step_loss(model, batch.latents, end, batch.timesteps[:, 0], batch.timesteps[:, -1], batch.context)


def progressive(
    model: StableDiffusion,
    teacher: Network,
    adapter: Adapter,
    data: Data,
    timesteps: Sequence[int],
    *,
    steps: int = 600,
    learning_rate: float = 2e-4,
    generator: torch.Generator,
) -> Trainer:
    """A `Trainer` of one round, by Adam at a rate that falls to 0.

    model: the student, which begins as its teacher. adapter: what of it learns, `Network(model)` or a LoRA.
    teacher: that of the former round; the first one guided (`teacher.guided`). data: draws images.
    timesteps: the teacher's 2 n and the end, falling; the student's steps lead over every other one. Raises
    ValueError: they do not suit the model."""
    check_timesteps(model.scheduler, stops := list(timesteps))
    if len(stops) % 2 == 0:
        raise ValueError(f"{len(stops) - 1} steps of the teacher cannot be halved; give an even number of them")
    rows = torch.tensor(stops).unfold(0, 3, 2)  # n 3
    optimizer = torch.optim.Adam(adapter.trainable(), learning_rate)
    loss = partial(progressive_loss, teacher=teacher)
    rate = lambda taken: 1 - taken / steps  # noqa: E731
    return trainer(model, adapter, data, rows, loss, optimizer, steps, generator, rate)
