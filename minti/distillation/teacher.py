"""The teacher of a step distillation: its guided predictions, and DDIM's steps along its trajectory.

A batch has a timestep for each image, so that a network is called as `network(latents, timesteps, context)`."""

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minti.sampling import Network
from minti.scheduler import NoiseScheduler


class Batch(NamedTuple):
    """The batch of a step: noisy latents (b, c, h, w), contexts (b, m, d), and (b, k) timesteps, from that of the
    latents down to where the teacher's last step ends."""

    latents: Tensor
    context: Tensor
    timesteps: Tensor


def guided(network: Network, negative: Tensor, scale: float) -> Network:
    """Classifier-free guidance for a timestep of each image: uncond + s (cond - uncond); `negative`: (1 or b, m, d)."""
    if scale == 1:
        return network

    def predict(latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        contexts = torch.cat([negative.expand_as(context), context])
        uncond, cond = network(latents.repeat(2, 1, 1, 1), timesteps.repeat(2), contexts).chunk(2)
        return uncond + scale * (cond - uncond)

    return predict


def without(lora: Any, network: Network) -> Network:
    """The network as if the LoRA that is attached to it were not: the teacher of a LoRA is its own model."""

    def predict(latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        weight, lora.weight = lora.weight, 0.0
        try:
            return network(latents, timesteps, context)
        finally:
            lora.weight = weight

    return predict


def ddim_step(scheduler: NoiseScheduler, output: Tensor, latents: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """DDIM without noise, x_s = sqrt(a_s) x_0 + sqrt(1 - a_s) epsilon (arXiv 2010.02502); timesteps t and s, (b,)."""
    clean, noise = scheduler.clean_and_noise(output, latents, t)
    return scheduler.add_noise(clean, noise, s)


@torch.no_grad()
def ddim_steps(scheduler: NoiseScheduler, teacher: Network, batch: Batch) -> Tensor:
    """Where the teacher's steps through all timesteps of a batch end, (b, c, h, w)."""
    latents, context, stops = batch
    for t, s in zip(stops.T[:-1], stops.T[1:]):
        latents = ddim_step(scheduler, teacher(latents, t, context), latents, t, s)
    return latents


def check_timesteps(scheduler: NoiseScheduler, timesteps: list[int]) -> None:
    """Raises ValueError: they do not fall, or a model that predicts noise is to be distilled from pure noise."""
    if len(timesteps) < 2 or any(t <= s for t, s in pairwise(timesteps)):
        raise ValueError(f"timesteps = {timesteps}; expected at least two, each below the one before")
    if scheduler.config.prediction_type == "epsilon" and scheduler.alpha_bar(timesteps[0]) == 0:
        raise ValueError(
            f"timestep {timesteps[0]} is pure noise (zero terminal SNR), where predicted noise says nothing about the "
            "image; begin below it, or distil a model with v_prediction"
        )
