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

from minti.embedding_rows import TrainableRows
from minti.images import to_pixels
from minti.inversion import TrainingWrapper, diffusion_loss, prepare_for_textual_inversion
from minti.model import StableDiffusion
from minti.noise import randn
from minti.stopping import evaluation_interval, has_levelled_off
from minti.vae import DiagonalGaussian


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


class Concept:
    """The pictures as the loop needs them: what the VAE's encoder says of each, and of its mirror image.

    Args:
        images: pictures of any size, or pixels (n, 3, H, W) in [-1, 1].
        flip: whether to add the mirror images.
    """

    @torch.no_grad()
    def __init__(self, model: StableDiffusion, images: Sequence[Image.Image] | Tensor, flip: bool = False):
        if len(images) == 0:
            raise ValueError("there are no pictures to learn from")
        if not isinstance(images, Tensor):
            images = torch.stack([to_pixels(image, model.resolution) for image in images])
        if flip:
            images = torch.cat([images, images.flip(-1)])
        posteriors = [model.encode(pixels) for pixels in images.split(1)]
        self.mean = torch.cat([posterior.mean for posterior in posteriors])  # n c h w
        self.logvar = torch.cat([posterior.logvar for posterior in posteriors])
        self._sample_latents = model.sample_latents

    def __len__(self) -> int:
        return len(self.mean)

    def draw(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Fresh scaled latents of some of the pictures, (b, c, h, w)."""
        indices = indices.to(self.mean.device)
        return self._sample_latents(DiagonalGaussian(self.mean[indices], self.logvar[indices]), generator)


class FixedSet:
    """Pictures, timesteps and noise that stay the same, so that their loss shows the word and nothing else.

    "Is This Loss Informative?" (arXiv 2302.04841): with everything fixed, the loss is a smooth curve. The timesteps are
    spread evenly over the schedule; each picture is used about equally often.
    """

    def __init__(self, wrapper: TrainingWrapper, concept: Concept, size: int, generator: torch.Generator):
        self.wrapper = wrapper
        device, total = concept.mean.device, wrapper.scheduler.config.num_train_timesteps
        self.latents = concept.draw(torch.randperm(size, generator=generator) % len(concept), generator)
        self.timesteps = ((torch.arange(size, device=device) + 0.5) * total / size).long()
        self.noise = randn(self.latents.shape, generator, device, self.latents.dtype)

    @torch.no_grad()
    def loss(self, prompts: Sequence[str]) -> float:
        """The mean loss when picture i is described by prompt i, over and over."""
        total, size, batch_size = 0.0, len(self.latents), self.wrapper.batch_size
        for i in range(0, size, batch_size):
            part = slice(i, i + batch_size)
            context = self.wrapper.model.encode_prompt([prompts[j % len(prompts)] for j in range(size)[part]])
            loss = diffusion_loss(self.wrapper, self.latents[part], self.timesteps[part], context, self.noise[part])
            total += loss.item() * len(context)
        return total / size


def textual_inversion(
    wrapper: TrainingWrapper,
    images: Sequence[Image.Image] | Tensor,
    optimizer: torch.optim.Optimizer | None = None,
) -> Iterator[TrainingState]:
    """Learns the word; a generator that yields after every optimizer step.

    At every yield, and after the loop has ended or the caller has left it, the wrapper's model samples with the learned
    rows; in the end these are the best that the fixed loss has seen. Everything random comes from `config.seed`.

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
    interval = evaluation_interval(len(fixed.latents), wrapper.batch_size * config.gradient_accumulation)
    empty_loss, initializer_loss = fixed.loss([""]), fixed.loss(prompts)
    fixed_losses = [initializer_loss]
    first_rows = best_rows = rows.values.detach().clone()

    try:
        for step in range(1, last_step + 1):
            loss = _accumulate_gradients(wrapper, concept, prompts, generator)
            gradient_norm = _check_and_clip(rows.gradient, loss, config.max_gradient_norm, step)
            learning_rate = schedule.get_last_lr()[0]
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            if config.max_row_norm is not None:
                norms = rows.values.detach().norm(dim=1, keepdim=True)
                longest = config.max_row_norm * wrapper.vocabulary_norm
                _set_rows(rows, rows.values.detach() * (longest / norms).clamp(max=1))
            if step == 5 and torch.equal(rows.values, first_rows):
                raise TrainingError(f"after {step} steps the rows of {config.placeholder_token} have not moved")

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
    wrapper: TrainingWrapper, concept: Concept, prompts: Sequence[str], generator: torch.Generator
) -> float:
    """Forward and backward for one optimizer step, on fresh draws; returns the mean loss."""
    config, batch_size, total = wrapper.config, wrapper.batch_size, 0.0
    for _ in range(config.gradient_accumulation):
        latents = concept.draw(torch.randint(len(concept), (batch_size,), generator=generator), generator)
        chosen = torch.randint(len(prompts), (batch_size,), generator=generator)
        timesteps = torch.randint(wrapper.scheduler.config.num_train_timesteps, (batch_size,), generator=generator)
        context = wrapper.model.encode_prompt([prompts[i] for i in chosen])  # b n d
        loss = diffusion_loss(wrapper, latents, timesteps.to(latents.device), context, generator=generator)
        (loss / config.gradient_accumulation).backward()
        total += loss.item()
    return total / config.gradient_accumulation


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
