"""Textual inversion, task by task of exercise E4 (`000`; arXiv 2208.01618; lecture notes `002`, 16; `003`, 27).

v* = argmin_v  E[ || epsilon - epsilon_theta(z_t, t, c(template with v)) ||^2 ]        (arXiv 2208.01618, eq. 2)
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from minti.learning.loop import Loop
from minti.learning.losses import SQUARES, Measure
from minti.learning.pictures import Batch, Images
from minti.learning.preparation import check_wrapper, concept_of, follow, part_that_learns
from minti.learning.run_state import RunState
from minti.learning.saving import restore
from minti.learning.settings import TrainingWrapper
from minti.learning.watching import FixedSet, TrainingState, Watched
from minti.machine.noise import Generators, randn
from minti.model import StableDiffusion
from minti.words.beginning import initial_rows


def diffusion_loss(
    wrapper: TrainingWrapper | StableDiffusion,
    latents: Tensor,
    timestep_idx: Tensor,
    embeddings: Tensor,
    noise: Tensor | None = None,
    generator: Generators = None,
    masks: Tensor | None = None,
    measure: Measure = SQUARES,
) -> Tensor:
    """Task 1: the mean squared error of the UNet's answer, () float32 (DDPM, eq. 14; `002`, 4.3; `003`, 26).

    Args:
        wrapper: whatever has a `unet` and a `scheduler`.
        latents, noise: (b, c, h, w), clean and already scaled; standard normal, drawn from `generator` when absent.
        timestep_idx: (b,), in [0, num_train_timesteps).
        embeddings: (b, m, d), the encoded prompts; E4's name for the context.
        masks, measure: where an error counts, (b, 1, h, w), and how; everywhere and squared when absent.
    """
    if noise is None:
        noise = randn(latents.shape, generator, latents.device, latents.dtype)
    noisy_latents = wrapper.scheduler.add_noise(latents, noise, timestep_idx)
    prediction = wrapper.unet(noisy_latents, timestep_idx, embeddings)
    target = wrapper.scheduler.target(latents, noise, timestep_idx)
    return measure(prediction.float(), target.float(), wrapper.scheduler, timestep_idx, masks)


def prepare_for_textual_inversion(wrapper: TrainingWrapper) -> Optimizer:
    """Task 2: freezes the networks, adds the placeholder's tokens, and makes their rows, nothing else, trainable.

    The rows are inside the model until `wrapper.leave()`, or until `textual_inversion` begins.

    Raises ValueError: the placeholder is a word already, the initializer is neither a single token nor a phrase, a
    template is too long for the word to fit, or E4's recipe would have to train a matrix in half precision.
    """
    model, config = wrapper.model, wrapper.config
    check_wrapper(wrapper)
    word, begin = config.placeholder_token, config.initializer_token
    rows = initial_rows(model, begin, config.num_vectors, config.seed, wrapper.templates, word)  # k d
    model.freeze(checkpointing=config.gradient_checkpointing)
    wrapper.placeholder_ids = model.add_word(word, rows)

    part = part_that_learns(wrapper)  # the rows alone, or the whole matrix, whose other rows are put back
    optimizer = AdamW(part.trained(), lr=wrapper.learning_rate, weight_decay=config.weight_decay)
    follow(wrapper, part, optimizer)
    wrapper.enter(part)
    assert set(model.trainable()) <= set(part.trained()), "more than the word is trainable"
    return optimizer


def textual_inversion(
    wrapper: TrainingWrapper, images: Images, optimizer: Optimizer | None = None, checkpoint: RunState | None = None
) -> Iterator[TrainingState]:
    """Task 3a: learns the word; a generator that yields after every optimizer step.

    At every yield, and after the loop has ended or the caller has left it, the wrapper's model samples with the learned
    rows, in the end the best that the fixed loss has seen. Everything random comes from `config.seed`. In a group of
    processes (`minti.machine.processes`) all call this alike, and end with the same rows.

    `optimizer`: what task 2 returned; called here when absent. `checkpoint`: what `load_checkpoint` found of an
    interrupted run, which then goes on to the same end.

    Raises ValueError, TrainingError: no pictures, a checkpoint of another run, or as task 2; see `checks`.
    """
    run = begin(wrapper, images, optimizer)
    if checkpoint is not None:
        restore(wrapper, checkpoint)
    try:
        yield from run
    finally:  # also when the caller leaves the loop
        if wrapper.run is run:  # a newer run of the word is left alone
            run.keep_best()


def begin(wrapper: TrainingWrapper, images: Images, optimizer: Optimizer | None = None) -> Watched:
    """The run of `textual_inversion`, before its first step: a loop, and a fixed set to watch it by."""
    model, config, size = wrapper.model, wrapper.config, wrapper.batch_size
    wrapper.leave()
    concept = concept_of(model, config, images)
    optimizer = optimizer or prepare_for_textual_inversion(wrapper)
    wrapper.leave()  # from now on the rows are inside during a step only
    draw, loss = partial(concept.batch, size, wrapper.prompts), partial(word_loss, measure=config.measure)
    generator = torch.Generator().manual_seed(config.seed)
    how = {"accumulation": config.gradient_accumulation, "max_norm": config.max_gradient_norm, "rate": config.rate}
    loop = Loop(model, wrapper.rows, draw, loss, optimizer, config.last_step, generator, **how)
    fixed = FixedSet(concept, max(8, 2 * size), torch.Generator().manual_seed(config.seed + 1))
    wrapper.run = Watched(loop, fixed, wrapper.prompts, size, may_stop=config.steps is None)
    return wrapper.run


def word_loss(model: StableDiffusion, batch: Batch, measure: Measure = SQUARES) -> Tensor:
    """Task 1's loss of a batch; its prompts are encoded with the word as it is now."""
    context = model.encode_prompt(batch.prompts)  # b m d
    return diffusion_loss(model, batch.latents, batch.timesteps, context, batch.noise, None, batch.masks, measure)
