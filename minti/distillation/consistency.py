"""Latent consistency distillation (LCM, arXiv 2310.04378, Algorithm 1; LCM-LoRA, 2311.05556; questions `003`, 32): all
points of the teacher's trajectory should have one consistency function's value, the image in which it ends.

    f(z, t) = c_skip(t) z + c_out(t) x_0(z, t),   c_skip(0) = 1, c_out(0) = 0        the boundary condition
    L = |f(z_t, t) - stop-gradient f(z^_u, u)|,   z^_u: one guided DDIM step of the teacher from z_t

Without the boundary condition and the stop-gradient, as `003`, 32, writes the loss, any constant f has loss 0."""

from functools import partial

import torch
from torch import Tensor

from minti.adapter import Adapter
from minti.distillation.teacher import Batch, Data, check_timesteps, ddim_steps, trainer
from minti.model import StableDiffusion
from minti.samplers.few_step import boundary_scalings, solver_timesteps
from minti.sampling import Network
from minti.scheduler import NoiseScheduler
from minti.training import Trainer


def consistency_function(scheduler: NoiseScheduler, output: Tensor, latents: Tensor, t: Tensor) -> Tensor:
    """f = c_skip z + c_out x_0 from the network's raw output, (b, c, h, w); timesteps (b,)."""
    clean, _ = scheduler.clean_and_noise(output, latents, t)
    skip, out = (scaling.to(latents.dtype)[:, None, None, None] for scaling in boundary_scalings(t))
    return skip * latents + out * clean


def consistency_loss(
    model: StableDiffusion, batch: Batch, teacher: Network, huber: float = 1e-3, target: Network | None = None
) -> Tensor:
    """The pseudo-Huber distance sqrt(d^2 + c^2) - c, of `huber` c, between f at both ends of the teacher's step, ()
    float32. `target`: the network of the lower end, the student itself or an average of its weights."""
    (t, u), scheduler = batch.timesteps.T, model.scheduler
    found = consistency_function(scheduler, model.unet(batch.latents, t, batch.context), batch.latents, t)
    with torch.no_grad():
        end = ddim_steps(scheduler, teacher, batch)
        wanted = consistency_function(scheduler, (target or model.unet)(end, u, batch.context), end, u)
    return ((found.float() - wanted.float()).square() + huber**2).sqrt().sub(huber).mean()


def consistency(
    model: StableDiffusion,
    teacher: Network,
    adapter: Adapter,
    data: Data,
    *,
    steps: int = 1000,
    learning_rate: float = 1e-4,
    solver_steps: int = 50,
    huber: float = 1e-3,
    target: Network | None = None,
    generator: torch.Generator,
) -> Trainer:
    """A `Trainer` of a consistency model, by AdamW as in the paper's code.

    adapter: what of the model learns, a LoRA or `Network(model)`. teacher: guided (`teacher.guided`); of a LoRA the
    same model without it (`teacher.without`). data: draws images. solver_steps: of the teacher's DDIM, which
    `LCM(original_inference_steps)` should be told. Raises ValueError: they do not suit the model."""
    rising = solver_timesteps(model.scheduler, solver_steps)
    check_timesteps(model.scheduler, [*reversed(rising), -1])
    rows = torch.tensor([(t, max(t - rising[0] - 1, 0)) for t in rising])  # n 2
    optimizer = torch.optim.AdamW(adapter.trainable(), learning_rate)
    loss = partial(consistency_loss, teacher=teacher, huber=huber, target=target)
    return trainer(model, adapter, data, rows, loss, optimizer, steps, generator)
