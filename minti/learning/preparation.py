"""The setup (E4, task 2; lecture notes `002`, 16): all networks are frozen, and a new word gets rows that train."""

from __future__ import annotations

import math

import torch
from torch.optim.lr_scheduler import LambdaLR

from minti.initial_rows import initial_rows
from minti.learning.rows import ROW_UPDATES
from minti.learning.settings import TrainingWrapper
from minti.machine.messages import quoted
from minti.text import add_tokens, expand_placeholders, placeholder_tokens, tried_tokens


def prepare_for_textual_inversion(wrapper: TrainingWrapper) -> torch.optim.Optimizer:
    """Adds the placeholder's tokens, makes their rows (and nothing else) trainable, and returns the optimizer.

    Raises:
        ValueError: the placeholder is a word already, the initializer is neither a single token nor a phrase, a
            template is too long for the word to fit, or E4's recipe would have to train a matrix in half precision.
    """
    config, embedding = wrapper.config, wrapper.text_encoder.get_input_embeddings()
    if config.row_update == "restore" and embedding.weight.dtype != torch.float32:
        raise ValueError(
            f"row_update='restore' trains the embedding matrix itself, which is {embedding.weight.dtype}; load the "
            "model in float32, or use row_update='new_rows', whose rows are float32 in any model"
        )
    begin, word, count = config.initializer_token, config.placeholder_token, config.num_vectors
    tokens, parts = placeholder_tokens(word, count), (wrapper.tokenizer, wrapper.text_encoder)
    _check_prompts(wrapper, tokens)
    rows = initial_rows(*parts, begin, count, config.seed, wrapper.templates, word)  # k d
    for part in (wrapper.unet, wrapper.vae, wrapper.text_encoder):
        part.requires_grad_(False)
    wrapper.unet.set_checkpointing(config.gradient_checkpointing)

    wrapper.placeholder_ids = add_tokens(*parts, tokens, rows)

    embedding = wrapper.text_encoder.get_input_embeddings()
    first, last = wrapper.placeholder_ids[0], wrapper.placeholder_ids[-1]
    longest = None if config.max_row_norm is None else config.max_row_norm * wrapper.vocabulary_norm
    wrapper.rows = ROW_UPDATES[config.row_update](embedding, first, last + 1, longest)
    optimizer = torch.optim.AdamW(wrapper.rows.parameters, lr=wrapper.learning_rate, weight_decay=config.weight_decay)
    wrapper.rows.attach(optimizer)

    # Nothing but the rows can receive a gradient.
    trainable = {
        parameter
        for part in (wrapper.unet, wrapper.vae, wrapper.text_encoder)
        for parameter in part.parameters()
        if parameter.requires_grad
    }
    assert trainable <= set(wrapper.rows.parameters), "a parameter other than the new rows is trainable"
    assert [p for group in optimizer.param_groups for p in group["params"]] == wrapper.rows.parameters
    assert wrapper.placeholder_ids[-1] == len(embedding.weight) - 1, "the new rows are not the last rows"
    return optimizer


def _check_prompts(wrapper: TrainingWrapper, tokens: list[str]) -> None:
    """Training on a prompt without the word, or from which it is cut off, would run for hours and learn nothing.

    Asked of a copy of the tokenizer, before the word is added.
    """
    tried, placeholder = tried_tokens(wrapper.tokenizer, tokens), wrapper.config.placeholder_token
    length, ids = tried.model_max_length, set(tried.convert_tokens_to_ids(tokens))
    for prompt in wrapper.prompts:
        found = tried(expand_placeholders(prompt, tried), verbose=False).input_ids
        if not ids <= set(found):
            raise ValueError(f"the tokenizer does not find {placeholder} in the prompt {quoted(prompt)}")
        if not ids <= set(found[: length - 1]):  # the last place is the end's
            raise ValueError(
                f"the prompt {quoted(prompt)} does not contain all {len(ids)} vectors of {placeholder} once "
                f"tokenized: it is too long for the {length} tokens of the context; use a shorter template or fewer "
                "vectors"
            )


def learning_rates(wrapper: TrainingWrapper, optimizer: torch.optim.Optimizer, steps: int = 0) -> LambdaLR:
    """The learning rate after `steps` and more: a linear rise, then constant, or a cosine to zero at the last step."""
    config = wrapper.config

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        if config.lr_schedule == "constant":
            return 1.0
        progress = (step - config.warmup_steps) / max(1, config.last_step - config.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return LambdaLR(optimizer, factor, steps - 1)
