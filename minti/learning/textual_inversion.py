"""Textual inversion, task by task of exercise E4 (`000`; arXiv 2208.01618; lecture notes `002`, 16; `003`, 27).

v* = argmin_v  E[ || epsilon - epsilon_theta(z_t, t, c(template with v)) ||^2 ]        (arXiv 2208.01618, eq. 2)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minti.learning.loop import Loop
from minti.learning.pictures import Batch, Concept
from minti.learning.preparation import check_wrapper, limit_rows
from minti.learning.run_state import RunState
from minti.learning.saving import restore
from minti.learning.settings import TrainingWrapper
from minti.learning.watching import FixedSet, TrainingState, Watched
from minti.machine.noise import Generators, randn
from minti.model import StableDiffusion
from minti.parts.restored_matrix import RestoredMatrix
from minti.parts.word import Word
from minti.words.beginning import initial_rows


def diffusion_loss(
    wrapper: TrainingWrapper | StableDiffusion,
    latents: Tensor,
    timestep_idx: Tensor,
    embeddings: Tensor,
    noise: Tensor | None = None,
    generator: Generators = None,
) -> Tensor:
    """Task 1: how well the UNet tells the noise from the picture (DDPM, eq. 14; `002`, 4.3; `003`, 26).

    Args:
        wrapper: whatever has a `unet` and a `scheduler`.
        latents: (b, c, h, w), clean and already scaled.
        timestep_idx: (b,), in [0, num_train_timesteps).
        embeddings: (b, m, d), the encoded prompts; E4's name for the context.
        noise: (b, c, h, w); drawn from `generator` when absent.

    Returns:
        The mean squared error, () float32.
    """
    if noise is None:
        noise = randn(latents.shape, generator, latents.device, latents.dtype)
    noisy_latents = wrapper.scheduler.add_noise(latents, noise, timestep_idx)
    prediction = wrapper.unet(noisy_latents, timestep_idx, embeddings)
    target = wrapper.scheduler.target(latents, noise, timestep_idx)
    return F.mse_loss(prediction.float(), target.float())


def prepare_for_textual_inversion(wrapper: TrainingWrapper) -> torch.optim.Optimizer:
    """Task 2: freezes the networks, adds the placeholder's tokens, and makes their rows, nothing else, trainable.

    The rows are inside the model from now on; `textual_inversion` takes them out again, or `wrapper.leave()`.

    Raises:
        ValueError: the placeholder is a word already, the initializer is neither a single token nor a phrase, a
            template is too long for the word to fit, or E4's recipe would have to train a matrix in half precision.
    """
    model, config = wrapper.model, wrapper.config
    check_wrapper(wrapper)
    rows = initial_rows(
        model, config.initializer_token, config.num_vectors, config.seed, wrapper.templates, config.placeholder_token
    )
    model.freeze(checkpointing=config.gradient_checkpointing)
    first, *_ = wrapper.placeholder_ids = model.add_word(config.placeholder_token, rows)
    embedding = model.text_encoder.get_input_embeddings()
    if config.row_update == "new_rows":
        part = Word(embedding.weight[first:], first)
    else:
        part = RestoredMatrix(embedding, first, len(rows))
    part.name = f"the word {config.placeholder_token}"

    optimizer = torch.optim.AdamW(part.trained(), lr=wrapper.learning_rate, weight_decay=config.weight_decay)
    limit_rows(wrapper, part, optimizer)
    part.follow(optimizer, model)
    wrapper.enter(part)
    assert set(model.trainable()) <= set(part.trained()), "more than the word is trainable"
    return optimizer


def textual_inversion(
    wrapper: TrainingWrapper,
    images: Sequence[Image.Image] | Tensor,
    optimizer: torch.optim.Optimizer | None = None,
    checkpoint: RunState | None = None,
) -> Iterator[TrainingState]:
    """Task 3a: learns the word; a generator that yields after every optimizer step.

    At every yield, and after the loop has ended or the caller has left it, the wrapper's model samples with the learned
    rows, in the end the best that the fixed loss has seen. Everything random comes from `config.seed`. In a group of
    processes (`minti.machine.processes`) all call this alike, and end with the same rows.

    Args:
        images: pictures of any size, or pixels (n, 3, H, W) in [-1, 1].
        optimizer: what `prepare_for_textual_inversion` returned; called here when absent.
        checkpoint: what `load_checkpoint` found of an interrupted run, which then goes on to the same end.

    Raises:
        ValueError: no pictures, a checkpoint of another run, or as `prepare_for_textual_inversion`.
        TrainingError: see `checks`.
    """
    run = begin(wrapper, images, optimizer)
    if checkpoint is not None:
        restore(wrapper, checkpoint)
    try:
        yield from run
    finally:  # also when the caller leaves the loop
        if wrapper.run is run:  # a newer run of the word is left alone
            run.keep_best()


def begin(
    wrapper: TrainingWrapper,
    images: Sequence[Image.Image] | Tensor,
    optimizer: torch.optim.Optimizer | None = None,
) -> Watched:
    """The run of `textual_inversion`, before its first step: a loop, and a fixed set to watch it by."""
    model, config, size = wrapper.model, wrapper.config, wrapper.batch_size
    concept = Concept(model, images, config.horizontal_flip)
    optimizer = optimizer or prepare_for_textual_inversion(wrapper)
    wrapper.leave()  # from now on the rows are inside during a step only
    loop = Loop(
        model,
        part=wrapper.rows,
        draw=lambda generator: concept.batch(size, wrapper.prompts, generator),
        loss=word_loss,
        optimizer=optimizer,
        generator=torch.Generator().manual_seed(config.seed),
        steps=config.last_step,
        rate=config.rate,
        accumulation=config.gradient_accumulation,
        max_norm=config.max_gradient_norm,
    )
    fixed = FixedSet(concept, max(8, 2 * size), torch.Generator().manual_seed(config.seed + 1))
    wrapper.run = Watched(loop, fixed, wrapper.prompts, size, may_stop=config.steps is None)
    return wrapper.run


def word_loss(model: StableDiffusion, batch: Batch) -> Tensor:
    """Task 1's loss of a batch; its prompts are encoded with the word as it is now."""
    context = model.encode_prompt(batch.prompts)  # b m d
    return diffusion_loss(model, batch.latents, batch.timesteps, context, batch.noise)
