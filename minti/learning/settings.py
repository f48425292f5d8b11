"""What to learn and how; what is left open is answered by what suits the model."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from minti.learning.watching import Watched
from minti.machine.configs import check_range, check_types
from minti.machine.messages import quoted
from minti.model import StableDiffusion
from minti.parts.restored_matrix import RestoredMatrix
from minti.parts.word import Word
from minti.templates import TEMPLATES, check_templates

ROW_UPDATES = ("new_rows", "restore")
LR_SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class TextualInversionConfig:
    """What to learn and how. None means "what suits the model", where nothing else is said.

    Attributes:
        placeholder_token, num_vectors: the new word, and how many rows it has.
        initializer_token: a known word or phrase, roughly what the pictures show, to start from; None: a random row.
        row_update: "new_rows" (lean) or "restore" (E4's recipe); both learn the same.
        templates: "object", "style", or prompts with `{}` where the word goes; None: the model's own.
        horizontal_flip: also show mirror images.
        steps: train for exactly so many; None stops when the fixed loss has levelled off, at the latest at `max_steps`.
        batch_size: pictures per forward pass; None: 1 on SD v1.4, 8 on the toybox.
        gradient_accumulation, gradient_checkpointing: batches per step; whether to save memory at the cost of time.
        learning_rate: None: three tenths of the vocabulary rows' root mean square.
        lr_schedule: "constant" or "cosine" (to zero at the last step), after `warmup_steps` of linear rise.
        weight_decay, max_gradient_norm: AdamW's, on the new rows; clips their gradient, None: does not.
        max_row_norm: keeps each row's length below so many mean lengths of the vocabulary's rows; None lets it grow.
        seed: of everything random.
    """

    placeholder_token: str = "<concept>"
    initializer_token: str | None = "toy"
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

    @property
    def last_step(self) -> int:
        """How many steps the run takes at most."""
        return self.steps or self.max_steps

    def rate(self, taken: int) -> float:
        """What the learning rate is multiplied by: a linear rise, then 1, or a cosine to zero at the last step."""
        if taken < self.warmup_steps:
            return (taken + 1) / self.warmup_steps
        if self.lr_schedule == "constant":
            return 1.0
        progress = (taken - self.warmup_steps) / max(1, self.last_step - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def __post_init__(self) -> None:
        check_types(self)
        for key, choices in (("row_update", ROW_UPDATES), ("lr_schedule", LR_SCHEDULES)):
            if getattr(self, key) not in choices:
                raise ValueError(f"unknown {key} {quoted(getattr(self, key))}; expected one of {', '.join(choices)}")
        check_range(self, 1, 1_000_000_000, "steps", "max_steps", "gradient_accumulation")
        check_range(self, 1, 1000, "num_vectors")
        check_range(self, 1, 100_000, "batch_size")
        check_range(self, 0, 1_000_000, "warmup_steps", "learning_rate", "weight_decay")
        check_range(self, 1e-12, 1e12, "max_gradient_norm", "max_row_norm")
        check_range(self, 0, 2**63 - 1, "seed")
        if self.lr_schedule == "cosine" and self.steps is None:
            raise ValueError("lr_schedule = 'cosine' falls to zero at the last step; say with `steps` which that is")
        if self.templates is not None:
            check_templates(self.templates)


class TrainingWrapper:
    """A model, a config, and what training adds to them.

    Attributes:
        unet, vae, text_encoder, tokenizer, scheduler: the model's parts, under E4's names.
        vocabulary_norm: mean length of the model's own rows.
        learning_rate, batch_size, templates: the config's, or what suits the model; a rate of three tenths of the rows'
            root mean square is about 4e-3 on SD v1.4.
        rows: the part that learns, whose `values` are the word's rows, once `prepare_for_textual_inversion` has run.
        placeholder_ids: their token ids.
        run: the run that learns them, once `textual_inversion` has begun.
    """

    def __init__(self, model: StableDiffusion, config: TextualInversionConfig):
        self.model, self.config = model, config
        self.unet, self.vae, self.scheduler = model.unet, model.vae, model.scheduler
        self.text_encoder, self.tokenizer = model.text_encoder, model.tokenizer
        # The words that the model came with: what was learned since must not change how the next word is learned.
        vocabulary = model.text_encoder.get_input_embeddings().weight.detach()[: model.tokenizer.vocab_size].float()
        self.vocabulary_norm = vocabulary.norm(dim=1).mean().item()
        own_rate = 0.3 * vocabulary.square().mean().sqrt().item()
        self.learning_rate = own_rate if config.learning_rate is None else config.learning_rate
        self.batch_size = config.batch_size or model.defaults.batch_size
        templates = config.templates or model.defaults.templates
        self.templates: Sequence[str] = TEMPLATES[templates] if isinstance(templates, str) else templates
        self.rows: Word | RestoredMatrix | None = None
        self.placeholder_ids: list[int] = []
        self.run: Watched | None = None
        self._inside = ExitStack()

    def enter(self, rows: Word | RestoredMatrix) -> None:
        """Takes the part that learns; it is inside the model until `leave`."""
        self.rows = rows
        self._inside.enter_context(rows.inside(self.model))

    def leave(self) -> None:
        """Takes the rows out of the model again, which keeps the word as it is now."""
        self._inside.close()

    @property
    def prompts(self) -> list[str]:
        """What training says of the pictures: every template with the placeholder in it."""
        return [template.replace("{}", self.config.placeholder_token) for template in self.templates]
