"""What to learn and how; what is left open is answered by what suits the model."""

import math
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from minti.learning.losses import Measure
from minti.learning.watching import Watched
from minti.machine.configs import check_choice, check_range, check_types
from minti.machine.messages import quoted
from minti.model import StableDiffusion
from minti.parts.restored_matrix import RestoredMatrix
from minti.parts.word import Word
from minti.templates import TEMPLATES, Captions, check_templates
from minti.text import check_text

ROW_UPDATES = ("new_rows", "restore")
LR_SCHEDULES = ("constant", "cosine")
LEARNS = ("network", "lora")


@dataclass(frozen=True, kw_only=True)
class LearningConfig:
    """What textual inversion and its siblings share. None means "what suits the model", where nothing else is said.

    Attributes:
        templates: "object", "style", or prompts with `{}` where the word goes; None: the model's own.
        captions: instead of templates, a prompt for each picture, in their order; `{}` in it becomes the word.
        horizontal_flip: also show mirror images.
        masked: learn only from where the pictures are opaque.
        steps: train for exactly so many.
        batch_size: pictures per forward pass; None: 1 on SD v1.4, 8 on the toybox.
        gradient_accumulation, gradient_checkpointing: batches per step; whether to save memory at the cost of time.
        learning_rate, weight_decay: AdamW's.
        lr_schedule: "constant" or "cosine" (to zero at the last step), after `warmup_steps` of linear rise.
        max_gradient_norm: clips the gradient of what is learned; None: does not.
        huber, min_snr: see `losses.Measure`.
        seed: of everything random.
    """

    templates: str | Sequence[str] | None = None
    captions: Sequence[str] | None = None
    horizontal_flip: bool = False
    masked: bool = False
    steps: int | None = None
    batch_size: int | None = None
    gradient_accumulation: int = 1
    gradient_checkpointing: bool = False
    learning_rate: float | None = None
    lr_schedule: str = "constant"
    warmup_steps: int = 0
    weight_decay: float = 1e-2
    max_gradient_norm: float | None = 1.0
    huber: float | None = None
    min_snr: float | None = None
    seed: int = 0

    @property
    def last_step(self) -> int:
        """How many steps the run takes at most."""
        return self.steps

    @property
    def measure(self) -> Measure:
        """How the loss measures errors."""
        return Measure(self.huber, self.min_snr)

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
        check_choice(self, "lr_schedule", LR_SCHEDULES)
        check_range(self, 1, 1_000_000_000, "steps", "gradient_accumulation")
        check_range(self, 1, 100_000, "batch_size")
        check_range(self, 0, 1_000_000, "warmup_steps", "learning_rate", "weight_decay")
        check_range(self, 1e-12, 1e12, "max_gradient_norm", "huber", "min_snr")
        check_range(self, 0, 2**63 - 1, "seed")
        if self.templates is not None:
            check_templates(self.templates)
        for caption in self.captions or ():
            check_text(caption, "caption")


@dataclass(frozen=True)
class TextualInversionConfig(LearningConfig):
    """What word to learn and how; the learning rate is by itself three tenths of the vocabulary rows' root mean square.

    Attributes:
        placeholder_token, num_vectors: the new word, and how many rows it has.
        initializer_token: a known word or phrase, roughly what the pictures show, to start from; None: a random row.
        row_update: "new_rows" (lean) or "restore" (E4's recipe); both learn the same.
        max_steps: the most where `steps` is None, with which training stops when the fixed loss has levelled off.
        max_row_norm: keeps each row's length below so many mean lengths of the vocabulary's rows; None lets it grow.
    """

    placeholder_token: str = "<concept>"
    initializer_token: str | None = "toy"
    num_vectors: int = 1
    row_update: str = "new_rows"
    max_steps: int = 3000
    max_row_norm: float | None = None

    @property
    def last_step(self) -> int:
        """How many steps the run takes at most."""
        return self.steps or self.max_steps

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr_schedule == "cosine" and self.steps is None:
            raise ValueError("lr_schedule = 'cosine' falls to zero at the last step; say with `steps` which that is")
        check_choice(self, "row_update", ROW_UPDATES)
        check_range(self, 1, 1_000_000_000, "max_steps")
        check_range(self, 1, 1000, "num_vectors")
        check_range(self, 1e-12, 1e12, "max_row_norm")


@dataclass(frozen=True)
class DreamBoothConfig(LearningConfig):
    """What of the model learns, and what is to stay; rate and steps of None are the model's `defaults`.

    Attributes:
        learns: "network", the UNet itself, or "lora", low-rank updates beside it.
        text_encoder: whether that of the text encoder, too.
        rank, alpha, layers: of the LoRA, see `parts.lora.LoRA`.
        placeholder_token, initializer_token: a rare word, and the class that the thing is of.
        class_prompt: what the class pictures show; None: a photo of the class.
        prior_weight, class_pictures: lambda, 0 to do without; how many pictures of the class there are.
        word_learning_rate: of a new word that learns along; None: a tenth of that with which it was learned.
    """

    learns: str = "network"
    text_encoder: bool = False
    rank: int = 4
    alpha: float | None = None
    layers: Sequence[str] = ("attention",)
    placeholder_token: str = "sks"
    initializer_token: str = "toy"
    class_prompt: str | None = None
    prior_weight: float = 1.0
    class_pictures: int | None = None
    word_learning_rate: float | None = None

    @property
    def prior_prompt(self) -> str:
        """What the class pictures show."""
        return self.class_prompt or f"a photo of a {self.initializer_token}"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "learns", LEARNS)
        check_range(self, 0, 1_000_000, "prior_weight", "word_learning_rate", "class_pictures")
        if not _names(self.prior_prompt, self.initializer_token) or _names(self.prior_prompt, self.placeholder_token):
            a_class, thing = quoted(self.initializer_token), quoted(self.placeholder_token)
            wanted = f"expected one that names the class, {a_class}, without the word for the thing, {thing}"
            raise ValueError(f"class_prompt = {quoted(self.prior_prompt)}; {wanted}")
        if self.prior_weight and self.class_pictures == 0:
            raise ValueError("prior_weight needs pictures of the class: set class_pictures, or prior_weight = 0")


def _names(prompt: str, word: str) -> bool:
    """Whether a prompt has a word, or a phrase, in it."""
    return bool(word.strip()) and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", prompt, re.IGNORECASE) is not None


class Training:
    """A model, a config, and how the two go together; a run of it leaves what `saving` needs.

    Attributes:
        batch_size, templates, learning_rate: the config's, or what suits the model.
        subject: what prompts call the thing.
        run: the run that learns, once it has begun.
        facts: what else must be the same for it to go on after an interruption.
    """

    def __init__(self, model: StableDiffusion, config: LearningConfig, subject: str, learning_rate: float):
        self.model, self.config, self.subject = model, config, subject
        self.learning_rate = learning_rate if config.learning_rate is None else config.learning_rate
        self.batch_size = config.batch_size or model.defaults.batch_size
        templates = config.templates or model.defaults.templates
        self.templates: Sequence[str] = TEMPLATES[templates] if isinstance(templates, str) else templates
        self.run: Watched | None = None
        self.facts: dict[str, str | None] = {}

    @property
    def prompts(self) -> list[str]:
        """What training says of the pictures: every template with the subject in it, or every picture's caption."""
        if self.config.captions is not None:
            return Captions(caption.replace("{}", self.subject) for caption in self.config.captions)
        return [template.replace("{}", self.subject) for template in self.templates]


class TrainingWrapper(Training):
    """A model, a config, and what learning a word adds to them.

    Attributes:
        unet, vae, text_encoder, tokenizer, scheduler: the model's parts, under E4's names.
        vocabulary_norm: mean length of the model's own rows.
        learning_rate: by itself about 4e-3 on SD v1.4.
        rows: the part that learns, whose `values` are the word's rows, once `prepare_for_textual_inversion` has run.
        placeholder_ids: their token ids.
    """

    def __init__(self, model: StableDiffusion, config: TextualInversionConfig):
        self.unet, self.vae, self.scheduler = model.unet, model.vae, model.scheduler
        self.text_encoder, self.tokenizer = model.text_encoder, model.tokenizer
        # The words that the model came with: what was learned since must not change how the next word is learned.
        vocabulary = model.text_encoder.get_input_embeddings().weight.detach()[: model.tokenizer.vocab_size].float()
        self.vocabulary_norm = vocabulary.norm(dim=1).mean().item()
        own_rate = 0.3 * vocabulary.square().mean().sqrt().item()
        super().__init__(model, config, config.placeholder_token, own_rate)
        self.rows: Word | RestoredMatrix | None = None
        self.placeholder_ids: list[int] = []
        self._inside = ExitStack()

    def enter(self, rows: Word | RestoredMatrix) -> None:
        """Takes the part that learns; it is inside the model until `leave`."""
        self.rows = rows
        self._inside.enter_context(rows.inside(self.model))

    def leave(self) -> None:
        """Takes the rows out of the model again, which keeps the word as it is now."""
        self._inside.close()
