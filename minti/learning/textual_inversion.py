"""Textual inversion, the loop (exercise E4, `000`, task 3a; lecture notes `002`, chapter 16; questions `003`, 27)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor

from minti.checkpoints.run_state import RunState
from minti.learning.loss import diffusion_loss
from minti.learning.progress import TrainingError, TrainingState
from minti.learning.run import Run
from minti.learning.settings import TrainingWrapper
from minti.machine.noise import randn
from minti.machine.processes import add_up, rank, world_size


def textual_inversion(
    wrapper: TrainingWrapper,
    images: Sequence[Image.Image] | Tensor,
    optimizer: torch.optim.Optimizer | None = None,
    checkpoint: RunState | None = None,
) -> Iterator[TrainingState]:
    """Learns the word; a generator that yields after every optimizer step.

    At every yield, and after the loop has ended or the caller has left it, the wrapper's model samples with the learned
    rows; in the end these are the best that the fixed loss has seen, and nothing in the model is trainable any more.
    Everything random comes from `config.seed`. In a group of processes (`minti.machine.processes`) all call this alike,
    and end with the same rows.

    Args:
        images: pictures of any size, or pixels (n, 3, H, W) in [-1, 1].
        optimizer: what `prepare_for_textual_inversion` returned; called here when absent.
        checkpoint: what `load_checkpoint` found of an interrupted run, which then goes on to the same end.

    Raises:
        ValueError: no pictures, a checkpoint of another run, or as `prepare_for_textual_inversion`.
        TrainingError: the loss, the gradient or the rows are not finite, the word receives no gradient, or its rows do
            not move.
    """
    run = None
    try:
        run = wrapper.run = Run(wrapper, images, optimizer)
        if checkpoint is not None:
            run.restore(checkpoint)
        while not run.progress.finished:
            run.whole = False
            wrapper.rows.activate()
            run.optimizer.zero_grad(set_to_none=True)
            loss = accumulate_gradients(run)
            gradient_norm, learning_rate = math.nan, run.rates.get_last_lr()[0]
            if usable := run.scale.unscale():
                gradient_norm = check_and_clip(run, loss)
            run.scale.step()
            run.step += 1
            if usable:
                run.rates.step()
                run.progress.check_rows(run.step - run.scale.lost)
            state = run.progress.look(run.step, loss, learning_rate, gradient_norm)
            run.whole = True
            yield state
    finally:  # also when the caller leaves the loop
        if wrapper.rows is not None and wrapper.run is run:  # a newer run of the word is left alone
            if run is not None:
                run.end()
            wrapper.rows.detach()


def accumulate_gradients(run: Run) -> float:
    """Forward and backward for one step, on fresh draws; the mean loss. Each rank draws for all, and does its share."""
    wrapper, concept, generator = run.wrapper, run.concept, run.generator
    batch_size, device, prompts = wrapper.batch_size, wrapper.model.device, wrapper.prompts
    count = wrapper.config.gradient_accumulation * world_size()
    total, run.drawn = torch.zeros((), device=device), []
    for i in range(count):
        numbers = torch.randint(len(concept), (batch_size,), generator=generator)
        latents = concept.draw(numbers, generator)  # b c h w
        chosen = torch.randint(len(prompts), (batch_size,), generator=generator)
        timesteps = torch.randint(wrapper.scheduler.config.num_train_timesteps, (batch_size,), generator=generator)
        noise = randn(latents.shape, generator, device, latents.dtype)
        run.drawn += zip(numbers.tolist(), timesteps.tolist())
        if i % world_size() != rank():
            continue
        context = wrapper.model.encode_prompt([prompts[j] for j in chosen])  # b m d
        loss = diffusion_loss(wrapper, latents, timesteps.to(device), context, noise)
        run.scale.backward(loss / count)
        total += loss.detach()
    if wrapper.rows.gradient is not None:
        add_up(wrapper.rows.gradient)
    return add_up(total).item() / count


def check_and_clip(run: Run, loss: float) -> float:
    """Fails where training could only waste time; clips the new rows' gradient in place and returns its norm.

    Raises:
        TrainingError: the loss or the gradient is not finite, or there is no gradient.
    """
    gradient, max_norm, step = run.wrapper.rows.gradient, run.wrapper.config.max_gradient_norm, run.step + 1
    norm = 0.0 if gradient is None else gradient.norm().item()
    if not math.isfinite(loss) or not math.isfinite(norm):
        what = f"the loss is {loss}" if not math.isfinite(loss) else "the gradient is not finite"
        seen = ", ".join(f"picture {number} at timestep {t}" for number, t in run.drawn)
        raise TrainingError(f"{what} at step {step}, of {seen}; try a lower learning rate or float32")
    if norm == 0:
        raise TrainingError(f"the word receives no gradient at step {step}: no prompt leads to it")
    if max_norm is not None and norm > max_norm:
        gradient.mul_(max_norm / norm)
    return norm
