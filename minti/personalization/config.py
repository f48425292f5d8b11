"""More settings of a training run: captions, masks, mirror images, other losses, learning rate schedules."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from torch import Tensor
from torch.optim import Optimizer

from minti.model import StableDiffusion
from minti.personalization.augmented_images import AugmentedImages
from minti.personalization.context_loss import context_loss
from minti.personalization.directional import word_optimizer
from minti.personalization.fitting import FITS
from minti.personalization.losses import DiffusionLoss, weighted_loss
from minti.personalization.vocabulary import is_learned
from minti.prompts.syntax import parse
from minti.runs.checks import check_range
from minti.runs.messages import check_choice, short_repr
from minti.runs.word_checks import check_templates, check_text
from minti.textual_inversion import Batch, Images, TextualInversionConfig, TrainingImages, batch_loss
from minti.wrapper import TrainingWrapper


@dataclass(frozen=True, kw_only=True)
class PersonalizationConfig(TextualInversionConfig):
    """`TextualInversionConfig` makes one of these where it is given one of these options.

    Attributes:
        by_layer, timestep_ranges: own vectors for each cross-attention, and for so many ranges of timesteps; see
            `minti.personalization.vector_table`.
        context_weight, context_prompts: of the loss that keeps the other words of a prompt near what they are beside
            the initializer; None: the model's `defaults.prompts`. See `minti.personalization.context_loss`.
        max_row_norm, row_norm: each embedding vector is at most, or exactly, so many mean lengths of the vocabulary's
            long; the latter is 1 for directional textual inversion. None: as long as it becomes.
        directional, kappa: vectors learn their direction only; and the strength with which they are drawn to the
            initializer's. See `minti.personalization.directional`.
        captions: instead of templates, a prompt for each image, in their order; `{}` in it becomes the word.
        horizontal_flip, masked: also show mirror images; learn only where the images are opaque.
        fit: "crop", the centre (E4); "pad", the whole image on a square, of which only the image counts in the loss;
            "bucket", the nearest of several aspect ratios, with a batch size of 1 unless all images have the same.
        lr_schedule: "constant" or "cosine" (to zero at the last step), after `warmup_steps` of linear rise.
        prompt_weights: how the training prompts write weights, "a1111" or "compel"; None: they have none.
        huber, min_snr, variational: robust loss, and weights of the timesteps, see `DiffusionLoss`; None: neither.
    """

    max_row_norm: float | None = None
    row_norm: float | None = None
    directional: bool = False
    kappa: float = 0.0
    by_layer: bool = False
    timestep_ranges: int = 1
    context_weight: float = 0.0
    context_prompts: Sequence[str] | None = None
    captions: Sequence[str] | None = None
    horizontal_flip: bool = False
    masked: bool = False
    fit: str = "crop"
    lr_schedule: str = "constant"
    warmup_steps: int = 0
    prompt_weights: str | None = None
    huber: float | None = None
    min_snr: float | None = None
    variational: bool = False

    def __post_init__(self) -> None:
        self.check_settings()
        self.rate(self.warmup_steps)  # refused now, not after the first step

    def check_settings(self) -> None:
        """Raises ValueError: a setting of another kind, or out of its range."""
        super().__post_init__()
        check_range(self, 0, 2**63 - 1, "warmup_steps")
        check_range(self, 1e-12, 1e12, "max_row_norm", "row_norm", "huber", "min_snr")
        if self.variational and self.min_snr is not None:
            raise ValueError("variational and min_snr are both weights of the timesteps; give one of them")
        for flag in (field.name for field in fields(self) if field.type is bool):
            if not isinstance(getattr(self, flag), bool):
                raise ValueError(f"{flag} = {short_repr(getattr(self, flag))}; expected True or False")
        check_choice("lr_schedule", self.lr_schedule, ("constant", "cosine"))
        check_choice("fit", self.fit, FITS)
        check_range(self, 0.0, 1e6, "kappa", "context_weight")
        check_range(self, 1, 1000, "timestep_ranges")
        if self.context_weight and (self.initializer_token is None or is_learned(self.initializer_token)):
            raise ValueError("context_weight compares with the initializer, which has to be a word or a phrase then")
        if self.context_prompts is not None:
            check_templates(self.context_prompts, "context_prompt")
        if self.has_table and self.row_update == "restore":
            raise ValueError("row_update = 'restore' trains the one matrix; by_layer and timestep_ranges need new_rows")
        if self.max_row_norm and (self.directional or self.row_norm):
            raise ValueError("max_row_norm lets the length change, which directional and row_norm fix; choose one")
        if self.kappa and not self.directional:
            raise ValueError(f"kappa = {self.kappa} draws to a direction; it needs directional")
        for caption in self.captions or ():
            check_text(caption, "caption")
        if self.prompt_weights is not None:
            templates = () if isinstance(self.templates, str) else self.templates or ()
            for prompt in ("", *templates, *(self.captions or ())):
                parse(prompt, self.prompt_weights)

    def rate(self, taken: int) -> float:
        """Factor of the learning rate after so many steps: a linear rise, then 1, or a cosine to 0 at the last step.
        Raises ValueError: a cosine without `steps`."""
        if taken < self.warmup_steps:
            return (taken + 1) / self.warmup_steps
        if self.lr_schedule == "constant":
            return 1.0
        if self.steps is None:
            raise ValueError("lr_schedule = 'cosine' falls to zero at the last step; say with `steps` which that is")
        progress = (taken - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    has_table = property(lambda self: self.by_layer or self.timestep_ranges > 1)  # vectors by layer or timestep

    def optimizer(self, wrapper: TrainingWrapper) -> Optimizer:
        """Of a word: AdamW or that of directional textual inversion; and the limits of its vectors' lengths."""
        return word_optimizer(wrapper)

    @property
    def measure(self) -> DiffusionLoss | None:
        """Another loss than the mean of squares, if the settings ask for one."""
        measure = DiffusionLoss(self.huber, self.min_snr, self.variational)
        plain = not self.masked and self.fit != "pad" and self.prompt_weights is None
        return None if plain and measure == DiffusionLoss() else measure

    def loss(self, model: StableDiffusion, batch: Batch) -> Tensor:
        """The loss of a batch by `measure`."""
        if self.measure is None:
            loss = batch_loss(model, batch)
        else:
            options = {"weights": self.prompt_weights} if self.prompt_weights else {}
            loss = weighted_loss(model, batch, self.measure, **options)
        return loss + self.context(model) if self.context_weight else loss

    def context(self, model: StableDiffusion) -> Tensor:
        """The context loss times its weight."""
        known, prompts = self.initializer_token or model.defaults.initializer_token, self.context_prompts
        word, prompts = self.placeholder_token, prompts or model.defaults.prompts
        return self.context_weight * context_loss(model, word, known, prompts)

    def training_images(self, model: StableDiffusion, images: Images) -> TrainingImages:
        """The images with what the settings ask for. Raises ValueError: images of several shapes in a batch."""
        data = AugmentedImages(model, images, self.captions, self.horizontal_flip, self.masked, self.fit)
        if data.shapes and (self.batch_size or model.defaults.batch_size) > 1:
            data.shape(range(len(data)))
        return data
