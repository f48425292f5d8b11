"""More settings of a training run: captions, masks, mirror images, other losses, learning rate schedules."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from minti.model import StableDiffusion
from minti.personalization.augmented_images import AugmentedImages
from minti.personalization.losses import DiffusionLoss, weighted_loss
from minti.runs.checks import check_range
from minti.runs.messages import check_choice
from minti.runs.word_checks import check_text
from minti.textual_inversion import Batch, Images, TextualInversionConfig, TrainingImages, batch_loss


@dataclass(frozen=True, kw_only=True)
class PersonalizationConfig(TextualInversionConfig):
    """`TextualInversionConfig` makes one of these where it is given one of these options.

    Attributes:
        max_row_norm: each embedding vector is at most so many mean lengths of the vocabulary's long.
        captions: instead of templates, a prompt for each image, in their order; `{}` in it becomes the word.
        horizontal_flip, masked: also show mirror images; learn only where the images are opaque.
        lr_schedule: "constant" or "cosine" (to zero at the last step), after `warmup_steps` of linear rise.
        huber, min_snr, variational: robust loss, and weights of the timesteps, see `DiffusionLoss`; None: neither.
    """

    max_row_norm: float | None = None
    captions: Sequence[str] | None = None
    horizontal_flip: bool = False
    masked: bool = False
    lr_schedule: str = "constant"
    warmup_steps: int = 0
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
        check_range(self, 1e-12, 1e12, "max_row_norm", "huber", "min_snr")
        if self.variational and self.min_snr is not None:
            raise ValueError("variational and min_snr are both weights of the timesteps; give one of them")
        check_choice("lr_schedule", self.lr_schedule, ("constant", "cosine"))
        for caption in self.captions or ():
            check_text(caption, "caption")

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

    @property
    def measure(self) -> DiffusionLoss | None:
        """Another loss than the mean of squares, if the settings ask for one."""
        measure = DiffusionLoss(self.huber, self.min_snr, self.variational)
        return None if measure == DiffusionLoss() and not self.masked else measure

    def loss(self, model: StableDiffusion, batch: Batch) -> Tensor:
        """The loss of a batch by `measure`."""
        return batch_loss(model, batch) if self.measure is None else weighted_loss(model, batch, self.measure)

    def training_images(self, model: StableDiffusion, images: Images) -> TrainingImages:
        """The images with what the settings ask for."""
        return AugmentedImages(model, images, self.captions, self.horizontal_flip, self.masked)
