"""Textual inversion, the loop (exercise E4, `000`, task 3a; lecture notes `002`, chapter 16; questions `003`, 27)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor

from minti.distributed import add_up, rank, world_size
from minti.learning.loss import diffusion_loss
from minti.learning.pictures import Concept
from minti.learning.precision import GradientScale
from minti.learning.preparation import learning_rates, prepare_for_textual_inversion
from minti.learning.progress import Progress, TrainingError, TrainingState
from minti.learning.settings import TrainingWrapper
from minti.noise import randn


def textual_inversion(
    wrapper: TrainingWrapper,
    images: Sequence[Image.Image] | Tensor,
    optimizer: torch.optim.Optimizer | None = None,
) -> Iterator[TrainingState]:
    """Learns the word; a generator that yields after every optimizer step.

    At every yield, and after the loop has ended or the caller has left it, the wrapper's model samples with the learned
    rows; in the end these are the best that the fixed loss has seen. Everything random comes from `config.seed`. In a
    group of processes (`minti.distributed`) all call this alike, and end with the same rows.

    Args:
        images: pictures of any size, or pixels (n, 3, H, W) in [-1, 1].
        optimizer: what `prepare_for_textual_inversion` returned; called here when absent.

    Raises:
        ValueError: no pictures, or as `prepare_for_textual_inversion`.
        TrainingError: the loss is not finite, the word receives no gradient, or its rows do not move.
    """
    config, generator = wrapper.config, torch.Generator().manual_seed(wrapper.config.seed)
    concept = Concept(wrapper.model, images, config.horizontal_flip)
    optimizer = optimizer or prepare_for_textual_inversion(wrapper)
    rates = learning_rates(wrapper, optimizer)
    scale = GradientScale(wrapper.model, wrapper.rows, optimizer)
    progress = Progress(wrapper, concept, generator)
    try:
        for step in range(1, config.last_step + 1):
            loss = accumulate_gradients(wrapper, concept, scale, generator)
            gradient_norm, learning_rate = math.nan, rates.get_last_lr()[0]
            usable = scale.unscale()
            if usable:
                gradient_norm = check_and_clip(wrapper.rows.gradient, loss, config.max_gradient_norm, step)
            scale.step()
            optimizer.zero_grad(set_to_none=True)
            if usable:
                rates.step()
                progress.check_movement(step - scale.lost)
            yield progress.look(step, loss, learning_rate, gradient_norm)
            if progress.finished:
                break
    finally:  # also when the caller leaves the loop
        progress.keep_best()
        wrapper.rows.detach()


def accumulate_gradients(
    wrapper: TrainingWrapper, concept: Concept, scale: GradientScale, generator: torch.Generator
) -> float:
    """Forward and backward for one optimizer step, on fresh draws; returns the mean loss.

    Every rank draws for all and computes every `world_size`-th batch.
    """
    batch_size, device, prompts = wrapper.batch_size, wrapper.model.device, wrapper.prompts
    count = wrapper.config.gradient_accumulation * world_size()
    total = torch.zeros((), device=device)
    for i in range(count):
        latents = concept.draw(torch.randint(len(concept), (batch_size,), generator=generator), generator)  # b c h w
        chosen = torch.randint(len(prompts), (batch_size,), generator=generator)
        timesteps = torch.randint(wrapper.scheduler.config.num_train_timesteps, (batch_size,), generator=generator)
        noise = randn(latents.shape, generator, device, latents.dtype)
        if i % world_size() != rank():
            continue
        context = wrapper.model.encode_prompt([prompts[j] for j in chosen])  # b m d
        loss = diffusion_loss(wrapper, latents, timesteps.to(device), context, noise)
        scale.backward(loss / count)
        total += loss.detach()
    if wrapper.rows.gradient is not None:
        add_up(wrapper.rows.gradient)
    return add_up(total).item() / count


def check_and_clip(gradient: Tensor | None, loss: float, max_norm: float | None, step: int) -> float:
    """Fails where training could only waste time; clips the new rows' gradient in place and returns its norm.

    Raises:
        TrainingError: the loss or the gradient is not finite, or there is no gradient.
    """
    if not math.isfinite(loss):
        raise TrainingError(f"the loss is {loss} at step {step}; try a lower learning rate or float32")
    norm = 0.0 if gradient is None else gradient.norm().item()
    if norm == 0:
        raise TrainingError(f"the word receives no gradient at step {step}: no prompt leads to it")
    if not math.isfinite(norm):
        raise TrainingError(f"the gradient is not finite at step {step}; try a lower learning rate or float32")
    if max_norm is not None and norm > max_norm:
        gradient.mul_(max_norm / norm)
    return norm
