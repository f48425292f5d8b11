"""Textual inversion, the setting: what is learned, the loss, and the optimizer (exercise E4, `000`; arXiv 2208.01618).

The networks are frozen; all that is learned is one row (or a few) of the text encoder's embedding:

    v* = argmin_v  E[ || epsilon - epsilon_theta(z_t, t, c(template with v)) ||^2 ]        (arXiv 2208.01618, eq. 2)

E4's tasks: 1, `diffusion_loss`; 2, `prepare_for_textual_inversion`; 3a, the loop, is in `training.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minti import text
from minti.learning.rows import ROW_UPDATES, TrainableRows
from minti.model import StableDiffusion
from minti.noise import Generators, randn

LR_SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class TextualInversionConfig:
    """What to learn and how. A default of None means "what suits the model"; see `TrainingWrapper`.

    Attributes:
        placeholder_token: the new word.
        initializer_token: a known word that says roughly what the pictures show; training starts from its row.
        num_vectors: how many rows the word has.
        row_update: "new_rows" (lean) or "restore" (E4's recipe); both learn the same.
        templates: "object", "style", "toybox", or prompts with `{}` where the word goes.
        horizontal_flip: also show mirror images.
        steps: train for exactly so many; None stops when the fixed loss has levelled off, at the latest at `max_steps`.
        batch_size: pictures per forward pass; None: 1 on SD v1.4, 8 on the toybox.
        gradient_accumulation: forward and backward passes per optimizer step.
        gradient_checkpointing: save memory, at the cost of time; see `UNet.set_checkpointing`.
        learning_rate: None: three tenths of the vocabulary rows' root mean square.
        lr_schedule: "constant" or "cosine" (to zero at the last step), after `warmup_steps` of linear rise.
        max_gradient_norm: clips the gradient of the new rows; None for no clipping.
        max_row_norm: keeps each row's length below so many mean lengths of the vocabulary's rows; None lets it grow.
        seed: of everything random.
    """

    placeholder_token: str = "<concept>"
    initializer_token: str = "toy"
    num_vectors: int = 1
    row_update: str = "new_rows"
    templates: str | Sequence[str] | None = None
    horizontal_flip: bool = False
    steps: int | None = None
    max_steps: int = 3000
    batch_size: int | None = None
    gradient_accumulation: int = 1
    gradient_checkpointing: bool = False
    learning_rate: float | None = None
    lr_schedule: str = "constant"
    warmup_steps: int = 0
    weight_decay: float = 1e-2
    max_gradient_norm: float | None = 1.0
    max_row_norm: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for key, choices in (("row_update", tuple(ROW_UPDATES)), ("lr_schedule", LR_SCHEDULES)):
            if getattr(self, key) not in choices:
                raise ValueError(f"unknown {key} {getattr(self, key)!r}; expected one of {', '.join(choices)}")
        for key in ("num_vectors", "steps", "max_steps", "batch_size", "gradient_accumulation"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ValueError(f"{key} = {getattr(self, key)}; expected at least 1")
        if isinstance(self.templates, str):
            if self.templates not in text.TEMPLATES:
                raise ValueError(f"unknown templates {self.templates!r}; expected one of {', '.join(text.TEMPLATES)}")
            return
        for template in self.templates or ():
            if "{}" not in template:
                raise ValueError(f"template {template!r} has no {{}}; write {{}} where the new word goes")


class TrainingWrapper:
    """A model, a config, and what training adds to them.

    Attributes:
        unet, vae, text_encoder, tokenizer, scheduler: the model's parts, under E4's names.
        rows: the trainable rows, once `prepare_for_textual_inversion` has run.
        placeholder_ids: their token ids.
    """

    def __init__(self, model: StableDiffusion, config: TextualInversionConfig):
        self.model, self.config = model, config
        self.unet, self.vae, self.scheduler = model.unet, model.vae, model.scheduler
        self.text_encoder, self.tokenizer = model.text_encoder, model.tokenizer
        vocabulary = model.text_encoder.get_input_embeddings().weight.detach().float()
        self.vocabulary_norm = vocabulary.norm(dim=1).mean().item()
        self.vocabulary_rms = vocabulary.square().mean().sqrt().item()
        self.rows: TrainableRows | None = None
        self.placeholder_ids: list[int] = []

    @property
    def learning_rate(self) -> float:
        """The config's, or three tenths of the vocabulary rows' root mean square (about 4e-3 on SD v1.4)."""
        return 0.3 * self.vocabulary_rms if self.config.learning_rate is None else self.config.learning_rate

    @property
    def batch_size(self) -> int:
        """The config's, or as many pictures as have about 2,000 latent positions: 1 on SD v1.4, 8 on the toybox."""
        return self.config.batch_size or max(1, 2048 // self.unet.config.sample_size**2)

    @property
    def knows_english(self) -> bool:
        """Whether the vocabulary has the words of the paper's templates; the toybox's has not."""
        return len(self.tokenizer.tokenize("rendering")) == 1

    @property
    def templates(self) -> Sequence[str]:
        """The config's, or the paper's list for objects, or the toybox's own."""
        templates = self.config.templates
        if templates is None:
            templates = "object" if self.knows_english else "toybox"
        return text.TEMPLATES[templates] if isinstance(templates, str) else templates

    def prompt(self, template: str) -> str:
        """A template with the placeholder in it."""
        return template.replace("{}", self.config.placeholder_token)


# --- E4, task 1 -------------------------------------------------------------------------------------------------------


def diffusion_loss(
    wrapper: TrainingWrapper,
    latents: Tensor,
    timestep_idx: Tensor,
    embeddings: Tensor,
    noise: Tensor | None = None,
    generator: Generators = None,
) -> Tensor:
    """The loss of a diffusion model: how well the UNet tells the noise from the picture (E4, task 1; DDPM, eq. 14).

    Args:
        latents: (b, c, h, w), clean and already scaled.
        timestep_idx: (b,), in [0, num_train_timesteps).
        embeddings: (b, n, d), the encoded prompts.
        noise: (b, c, h, w); drawn from `generator` when absent.

    Returns:
        The mean squared error, a float32 number.
    """
    if noise is None:
        noise = randn(latents.shape, generator, latents.device, latents.dtype)
    noisy_latents = wrapper.scheduler.add_noise(latents, noise, timestep_idx)
    prediction = wrapper.unet(noisy_latents, timestep_idx, embeddings)
    target = wrapper.scheduler.target(latents, noise, timestep_idx)
    return F.mse_loss(prediction.float(), target.float())


# --- E4, task 2 -------------------------------------------------------------------------------------------------------


def prepare_for_textual_inversion(wrapper: TrainingWrapper) -> torch.optim.Optimizer:
    """Adds the placeholder's tokens, makes their rows (and nothing else) trainable, and returns the optimizer.

    Raises:
        ValueError: the placeholder is a word already, the initializer is not a single token, a template is too long for
            the word to fit, or E4's recipe would have to train a matrix in half precision.
    """
    config, embedding = wrapper.config, wrapper.text_encoder.get_input_embeddings()
    if config.row_update == "restore" and embedding.weight.dtype != torch.float32:
        raise ValueError(
            f"row_update='restore' trains the embedding matrix itself, which is {embedding.weight.dtype}; load the "
            "model in float32, or use row_update='new_rows', whose rows are float32 in any model"
        )
    for part in (wrapper.unet, wrapper.vae, wrapper.text_encoder):
        part.requires_grad_(False)
    wrapper.unet.set_checkpointing(config.gradient_checkpointing)

    initializer = text.single_token_id(wrapper.tokenizer, config.initializer_token)
    rows = embedding.weight[initializer].repeat(config.num_vectors, 1)  # k d
    tokens = text.placeholder_tokens(config.placeholder_token, config.num_vectors)
    wrapper.placeholder_ids = text.add_tokens(wrapper.tokenizer, wrapper.text_encoder, tokens, rows)
    _check_prompts(wrapper)

    embedding = wrapper.text_encoder.get_input_embeddings()
    wrapper.rows = ROW_UPDATES[config.row_update](embedding, start=wrapper.placeholder_ids[0])
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


def _check_prompts(wrapper: TrainingWrapper) -> None:
    """Training on a prompt without the word would run for hours and learn nothing."""
    for template in wrapper.templates:
        prompt = wrapper.prompt(template)
        found = text.tokenize([prompt], wrapper.tokenizer)[0].tolist()
        if any(token not in found for token in wrapper.placeholder_ids):
            raise ValueError(
                f"the prompt {prompt!r} does not contain all {len(wrapper.placeholder_ids)} vectors of "
                f"{wrapper.config.placeholder_token} once tokenized: it is too long for the "
                f"{wrapper.tokenizer.model_max_length} tokens of the context; use a shorter template or fewer vectors"
            )
