"""Textual inversion, the loop (exercise E4, `000`, task 3a; lecture notes `002`, chapter 16).

The pictures and the VAE never change, so each picture is encoded once, and every step draws fresh latents from what the
encoder said of it; after that the VAE is free to leave memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from minti import distributed
from minti.learning.pictures import Concept, FixedSet
from minti.learning.preparation import TrainingWrapper, diffusion_loss, prepare_for_textual_inversion
from minti.learning.progress import evaluation_interval, has_levelled_off
from minti.learning.rows import TrainableRows
from minti.noise import randn

MAX_SKIPPED = 20  # steps in a row that float16 may lose while it looks for a scale


class TrainingError(RuntimeError):
    """Training would go on but learn nothing."""


@dataclass(frozen=True)
class TrainingState:
    """What the loop shows after each optimizer step.

    Attributes:
        step: counts from 1.
        loss: of this step; mostly shows which timesteps were drawn.
        learning_rate: of this step.
        gradient_norm: of the new rows, before clipping.
        row_norm: mean length of the new rows. A vector far longer than any word's (`wrapper.vocabulary_norm`) stops
            obeying the rest of the prompt.
        fixed_loss: the loss over a fixed set of pictures, timesteps and noise; None where it was not computed.
        initializer_loss, empty_loss: the same for the initializer word and for the empty prompt.
        finished: whether this is the last step.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    row_norm: float
    fixed_loss: float | None
    initializer_loss: float
    empty_loss: float
    finished: bool


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
    config = wrapper.config
    generator = torch.Generator().manual_seed(config.seed)
    concept = Concept(wrapper.model, images, config.horizontal_flip)
    if optimizer is None:
        optimizer = prepare_for_textual_inversion(wrapper)
    rows, prompts = wrapper.rows, [wrapper.prompt(template) for template in wrapper.templates]
    last_step = config.steps or config.max_steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(wrapper, step, last_step))

    fixed = FixedSet(wrapper, concept, max(8, 2 * wrapper.batch_size), generator)
    per_step = wrapper.batch_size * config.gradient_accumulation * distributed.world_size()
    interval = evaluation_interval(len(fixed.latents), per_step)
    # float16 gradients would vanish; the scale is torch's own, which halves where they overflow and skips the step.
    scaler = torch.amp.GradScaler(wrapper.model.device.type, enabled=wrapper.model.dtype == torch.float16)
    taken = skipped = 0
    empty_loss, initializer_loss = fixed.loss([""]), fixed.loss(prompts)
    fixed_losses = [initializer_loss]
    first_rows = best_rows = rows.values.detach().clone()

    try:
        for step in range(1, last_step + 1):
            loss = _accumulate_gradients(wrapper, concept, prompts, generator, scaler)
            if scaler.is_enabled():
                scaler.unscale_(optimizer)
            overflow = scaler.is_enabled() and rows.gradient is not None and not rows.gradient.isfinite().all()
            skipped = skipped + 1 if overflow and skipped < MAX_SKIPPED else 0
            gradient_norm = math.nan
            if not skipped:
                gradient_norm = _check_and_clip(rows.gradient, loss, config.max_gradient_norm, step)
            learning_rate = schedule.get_last_lr()[0]
            scaler.step(optimizer)
            scaler.update()
            if not skipped:
                schedule.step()
                taken += 1
            optimizer.zero_grad(set_to_none=True)
            if config.max_row_norm is not None:
                norms = rows.values.detach().norm(dim=1, keepdim=True)
                longest = config.max_row_norm * wrapper.vocabulary_norm
                _set_rows(rows, rows.values.detach() * (longest / norms).clamp(max=1))
            if taken == 5 and torch.equal(rows.values, first_rows):
                raise TrainingError(f"after {taken} steps the rows of {config.placeholder_token} have not moved")

            fixed_loss = None
            if step % interval == 0 or step == last_step:
                fixed_loss = fixed.loss(prompts)
                if fixed_loss < min(fixed_losses):
                    best_rows = rows.values.detach().clone()
                fixed_losses.append(fixed_loss)
            finished = step == last_step or (
                config.steps is None and fixed_loss is not None and has_levelled_off(fixed_losses)
            )
            yield TrainingState(
                step=step,
                loss=loss,
                learning_rate=learning_rate,
                gradient_norm=gradient_norm,
                row_norm=rows.values.detach().norm(dim=1).mean().item(),
                fixed_loss=fixed_loss,
                initializer_loss=initializer_loss,
                empty_loss=empty_loss,
                finished=finished,
            )
            if finished:
                break
    finally:  # also when the caller leaves the loop
        if len(fixed_losses) > 1:
            _set_rows(rows, best_rows)


def _accumulate_gradients(
    wrapper: TrainingWrapper,
    concept: Concept,
    prompts: Sequence[str],
    generator: torch.Generator,
    scaler: torch.amp.GradScaler,
) -> float:
    """Forward and backward for one optimizer step, on fresh draws; returns the mean loss.

    Every rank draws for all and computes every `world_size`-th batch.
    """
    batch_size, device = wrapper.batch_size, wrapper.model.device
    count = wrapper.config.gradient_accumulation * distributed.world_size()
    total = torch.zeros((), device=device)
    for i in range(count):
        latents = concept.draw(torch.randint(len(concept), (batch_size,), generator=generator), generator)
        chosen = torch.randint(len(prompts), (batch_size,), generator=generator)
        timesteps = torch.randint(wrapper.scheduler.config.num_train_timesteps, (batch_size,), generator=generator)
        noise = randn(latents.shape, generator, device, latents.dtype)
        if i % distributed.world_size() != distributed.rank():
            continue
        context = wrapper.model.encode_prompt([prompts[j] for j in chosen])  # b n d
        loss = diffusion_loss(wrapper, latents, timesteps.to(device), context, noise)
        scaler.scale(loss / count).backward()
        total += loss.detach()
    if wrapper.rows.gradient is not None:
        distributed.add_up(wrapper.rows.gradient)
    return distributed.add_up(total).item() / count


def _check_and_clip(gradient: Tensor | None, loss: float, max_norm: float | None, step: int) -> float:
    """Fails where training could only waste time; clips the new rows' gradient in place and returns its norm."""
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


@torch.no_grad()
def _set_rows(rows: TrainableRows, values: Tensor) -> None:
    rows.values.copy_(values)
    rows.refresh()


def _rate(wrapper: TrainingWrapper, step: int, last_step: int) -> float:
    """The factor on the learning rate at a step (from 0): a linear rise, then constant or a cosine to zero."""
    config = wrapper.config
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(1, last_step - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
