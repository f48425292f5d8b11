"""The teacher of a step distillation: its guided predictions, and DDIM's steps along its trajectory. A batch has a
timestep for each image, so that a network is called as `network(latents, timesteps, context)`."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minti.adapter import Adapter
from minti.model import StableDiffusion
from minti.sampling import Network
from minti.scheduler import NoiseScheduler
from minti.training import Trainer
from minti.utils import randn

Data = Callable[[torch.Generator], tuple[Tensor, Tensor]]  # clean scaled latents (b, c, h, w), contexts (b, m, d)


class Batch(NamedTuple):
    """Noisy latents (b, c, h, w), contexts (b, m, d), and (b, k) timesteps, from that of the latents down to where the
    teacher's last step ends."""

    latents: Tensor
    context: Tensor
    timesteps: Tensor


def guided(network: Network, negative: Tensor, scale: float) -> Network:
    """Classifier-free guidance, uncond + s (cond - uncond), with a timestep for each image; `negative`: (1, m, d)."""

    def predict(latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        contexts = torch.cat([negative.expand_as(context), context])
        uncond, cond = network(latents.repeat(2, 1, 1, 1), timesteps.repeat(2), contexts).chunk(2)
        return uncond + scale * (cond - uncond)

    return network if scale == 1 else predict


def without(lora: Any, network: Network) -> Network:
    """The network as if the LoRA that is attached to it were not: the teacher of a LoRA is its own model."""

    def predict(*batch: Tensor) -> Tensor:
        weight, lora.weight = lora.weight, 0.0
        try:
            return network(*batch)
        finally:
            lora.weight = weight

    return predict


def ddim_step(scheduler: NoiseScheduler, output: Tensor, latents: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """DDIM without noise, x_s = sqrt(a_s) x_0 + sqrt(1 - a_s) epsilon (arXiv 2010.02502); timesteps t and s, (b,)."""
    return scheduler.add_noise(*scheduler.clean_and_noise(output, latents, t), s)


@torch.no_grad()
def ddim_steps(scheduler: NoiseScheduler, teacher: Network, batch: Batch) -> Tensor:
    """Where the teacher's steps through all timesteps of a batch end, (b, c, h, w)."""
    latents = batch.latents
    for t, s in pairwise(batch.timesteps.T):
        latents = ddim_step(scheduler, teacher(latents, t, batch.context), latents, t, s)
    return latents


def check_timesteps(scheduler: NoiseScheduler, timesteps: list[int]) -> None:
    """Raises ValueError: they do not fall, or a model that predicts noise is to be distilled from pure noise."""
    if len(timesteps) < 2 or any(t <= s for t, s in pairwise(timesteps)):
        raise ValueError(f"timesteps = {timesteps}; expected at least two, each below the one before")
    if scheduler.config.prediction_type == "epsilon" and scheduler.alpha_bar(timesteps[0]) == 0:
        why = "(zero terminal SNR), where predicted noise says nothing about the image"
        mend = "begin below it, or distil a model with v_prediction"
        raise ValueError(f"timestep {timesteps[0]} is pure noise {why}; {mend}")


def trainer(model: StableDiffusion, adapter: Adapter, data: Data, rows: Tensor, *args: Any, **options: Any) -> Trainer:
    """A `Trainer` whose batches are noised images, each with a random row of timesteps, of `rows` (n, k)."""

    def draw(generator: torch.Generator) -> Batch:
        clean, context = data(generator)
        timesteps = rows[torch.randint(len(rows), (len(clean),), generator=generator)].to(clean.device)  # b k
        noise = randn(clean.shape, generator, clean.device, clean.dtype)
        return Batch(model.scheduler.add_noise(clean, noise, timesteps[:, 0]), context, timesteps)

    model.freeze()
    return Trainer(model, adapter, draw, *args, max_norm=1.0, **options)
