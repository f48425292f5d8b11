"""DreamBooth: fine-tunes the model's weights, or a LoRA, on a subject, with prior preservation by class images.

L = L_instance + lambda L_class        (arXiv 2208.12242, eq. 2; slides `001`, "How Does DreamBooth Avoid Forgetting?")

The subject is called by a rare word and its class ("sks toy"), or by a new word that learns along (pivotal tuning).
"""

import hashlib
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.optim import AdamW, Optimizer

from minti.adapter import Adapter
from minti.adapters.compose import Compose
from minti.adapters.lora import LoRA
from minti.adapters.network import Network
from minti.formats.image_files import open_image, save_png
from minti.model import StableDiffusion
from minti.personalization.config import PersonalizationConfig
from minti.personalization.vocabulary import is_learned
from minti.runs.checkpoints import Checkpoint, fingerprint, pixels_hash, resumed
from minti.runs.checks import check_range
from minti.runs.distributed import add_up, rank, world_size
from minti.runs.messages import check_choice, short_repr
from minti.runs.monitor import Monitor, TrainingState, ValidationSet
from minti.sampling import sample
from minti.textual_inversion import Batch, Images, LearnedEmbedding, TrainingImages, batch_loss
from minti.wrapper import TrainingWrapper

WORD_ONLY = ("num_vectors", "row_update", "max_steps", "max_row_norm", "row_norm", "directional", "kappa")
WORD_ONLY += ("by_layer", "timestep_ranges", "context_weight", "context_prompts")  # settings of textual inversion


@dataclass(frozen=True, kw_only=True)
class DreamBoothConfig(PersonalizationConfig):
    """What of the model learns, and what is to stay; rate and steps of None are the model's `defaults`.

    Attributes:
        learns: "network", the UNet itself, or "lora", low-rank updates beside it.
        text_encoder: whether the text encoder learns, too.
        rank, alpha, layers: of the LoRA, see `adapters.lora.LoRA`.
        placeholder_token, initializer_token: a rare word, and the class of the subject ("": the model's default).
        class_prompt: what the class images show; None: a photo of the class.
        prior_weight, class_pictures: lambda, 0 to do without; how many class images there are.
        word_learning_rate: of a new word that learns along; None: a tenth of that with which it was learned.
    """

    learns: str = "network"
    text_encoder: bool = False
    rank: int = 4
    alpha: float | None = None
    layers: Sequence[str] = ("attention",)
    placeholder_token: str = "sks"
    initializer_token: str = ""
    class_prompt: str | None = None
    prior_weight: float = 1.0
    class_pictures: int | None = None
    word_learning_rate: float | None = None

    @property
    def prior_prompt(self) -> str:
        """What the class images show."""
        return f"a photo of a {self.initializer_token}" if self.class_prompt is None else self.class_prompt

    def __post_init__(self) -> None:
        self.check_settings()  # but not `rate`: a cosine may leave `steps` open, and `DreamBooth` says how many
        check_range(self, 0, 2**63 - 1, "class_pictures")
        check_range(self, 0.0, 1e6, "prior_weight", "word_learning_rate")
        check_choice("learns", self.learns, ("network", "lora"))
        for name in WORD_ONLY:
            if getattr(self, name) != PersonalizationConfig.__dataclass_fields__[name].default:
                raise ValueError(f"{name} is a setting of textual inversion; DreamBooth has none")
        subject, a_class = self.placeholder_token, self.initializer_token
        if is_learned(a_class):
            raise ValueError("initializer_token names the class of the subject, such as toy; it is no learned vectors")
        if a_class and (not _names(self.prior_prompt, a_class) or _names(self.prior_prompt, subject)):
            wanted = f"expected one that names the class, {short_repr(a_class)}, without the word for the subject"
            raise ValueError(f"class_prompt = {short_repr(self.prior_prompt)}; {wanted}, {short_repr(subject)}")
        if self.prior_weight and self.class_pictures == 0:
            raise ValueError("prior_weight needs class images: set class_pictures, or prior_weight = 0")


def _names(prompt: str, word: str) -> bool:
    """Whether a prompt has a word, or a phrase, in it."""
    return bool(word.strip()) and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", prompt, re.IGNORECASE) is not None


class Batches(NamedTuple):
    """The batches of a step: images of the subject, and of its class."""

    instance: Batch
    prior: Batch | None = None


def dreambooth_loss(
    model: StableDiffusion,
    batches: Batches,
    prior_weight: float = 1.0,
    loss: Callable[[StableDiffusion, Batch], Tensor] = batch_loss,
) -> Tensor:
    """The loss with prior preservation, L_instance + lambda L_class, () float32, each a mean over its own batch."""
    instance = loss(model, batches.instance)
    return instance if batches.prior is None else instance + prior_weight * loss(model, batches.prior)


class DreamBooth(TrainingWrapper):
    """A model, a config, and the adapter that learns; `word`, learned before, then names the subject and learns along.

    Attributes:
        adapter, lora: what learns, and the LoRA in it, if there is one; the model has it while it is attached.

    Raises ValueError: a word together with the network, or see `LoRA` and `Network`.
    """

    def __init__(self, model: StableDiffusion, config: DreamBoothConfig, word: TrainingWrapper | None = None):
        whole, defaults = config.learns == "network", model.defaults
        config = replace(config, initializer_token=config.initializer_token or defaults.initializer_token)
        subject = word.subject if word else f"{config.placeholder_token} {config.initializer_token}"
        rate = defaults.network_learning_rate if whole else defaults.lora_learning_rate
        steps = defaults.tuning_steps // (1 if config.prior_weight else 2)
        config = replace(config, steps=config.steps or steps)
        super().__init__(model, config, subject, 0.5 * rate if word else rate)  # a word has most of it already
        self.word, self.lora, self.metadata = word, None, {"model": fingerprint(model)}  # before it learns
        if word and (whole or not isinstance(word.embedding, LearnedEmbedding)):
            raise ValueError("a new word learns along with a LoRA only, and by row_update='new_rows'")
        if not whole:
            options = (config.rank, config.alpha, tuple(config.layers), config.text_encoder)
            self.lora = LoRA(model, *options, torch.Generator().manual_seed(config.seed))
        learner: Adapter = self.lora or Network(model, config.text_encoder)
        self.metadata["word"] = word and str(word.embedding.values.detach().cpu().double().sum().item())
        self.adapter = Compose(learner, word.embedding) if word else learner

    @property
    def named(self) -> bool:
        """Whether a training prompt says the word for the subject; captions need not."""
        word = self.word.subject if self.word else self.config.placeholder_token
        return any(_names(prompt, word) for prompt in self.prompts)

    def optimizer(self, make: Callable[..., Optimizer] = AdamW) -> Optimizer:
        """For all that learns, a word at a rate of its own."""
        groups = [{"params": (self.lora or self.adapter).trainable(), "lr": self.learning_rate}]
        if self.word:
            rate, own = self.config.word_learning_rate, 0.1 * self.word.learning_rate
            if getattr(self.word.config, "directional", False):  # radians, to AdamW's step of every number
                own *= self.word.vocabulary_norm / self.word.embedding.values.shape[1] ** 0.5
            groups.append({"params": self.word.embedding.trainable(), "lr": own if rate is None else rate})
        return make(groups, weight_decay=self.config.weight_decay)


def dreambooth(
    training: DreamBooth,
    images: Images,
    class_images: Images = (),
    checkpoint: Checkpoint | None = None,
    optimizer: Callable[..., Optimizer] = AdamW,
) -> Iterator[TrainingState]:
    """DreamBooth training: yields after every step. In the end the adapter has the values of the last step.

    `class_images`: what `class_pictures` gives, or one's own. `checkpoint`: what `load_checkpoint` found of a run that
    was interrupted. `optimizer`: makes one, of parameter groups; AdamW, or one of a library's in 8 bits.

    Raises ValueError, TrainingError: no images, captions that do not fit them, a checkpoint of another run.
    """
    model, config, size = training.model, training.config, training.batch_size
    if config.prior_weight and len(class_images) == 0:
        missing = f"there are no class images, which prior_weight = {config.prior_weight} needs"
        raise ValueError(f"{missing}: give class_images=minti.class_pictures(model, config, folder), or prior_weight=0")
    data = config.training_images(model, images)
    if not training.named:
        what = f"no caption says {training.subject}, so its images do not teach that; write {{}} where the subject is"
        warnings.warn(what, stacklevel=2)
    prior = TrainingImages(model, class_images) if config.prior_weight else None
    training.metadata["class_images"] = prior and pixels_hash(prior.pixels)

    def draw(generator: torch.Generator) -> Batches:
        instance = data.batch(size, training.prompts, generator)
        return Batches(instance, prior and prior.batch(size, [config.prior_prompt], generator))

    model.freeze(checkpointing=config.gradient_checkpointing)
    if training.word:
        training.word.detach()
    loss = partial(dreambooth_loss, prior_weight=config.prior_weight, loss=config.loss)
    trainer = training.begin(training.adapter, data, draw, loss, training.optimizer(optimizer), config.steps)
    if checkpoint is not None:
        resumed(trainer, checkpoint)
    validation = ValidationSet(data, max(8, 2 * size), torch.Generator().manual_seed(config.seed + 1))
    return iter(Monitor(trainer, validation, training.prompts, size, config.loss, track_best=False))


def class_pictures(
    model: StableDiffusion, config: DreamBoothConfig, folder: Path, on_image: Callable[[], None] = lambda: None
) -> list[Image.Image]:
    """Class images, sampled from the model before it learns, unless the folder has them already: in a folder of their
    own for each model, prompt and seed. Raises OSError: they cannot be written."""
    config = replace(config, initializer_token=config.initializer_token or model.defaults.initializer_token)
    asked = f"{fingerprint(model)} {config.prior_prompt} {config.seed}".encode()
    folder = Path(folder) / hashlib.sha256(asked).hexdigest()[:8]
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:04}.png" for i in range(config.class_pictures or model.defaults.class_pictures)]
    missing = [i for i, path in enumerate(paths) if not path.is_file()][rank() :: world_size()]
    for start in range(0, len(missing), 8):
        some = missing[start : start + 8]
        noise = [torch.Generator().manual_seed(config.seed + i) for i in some]
        options = {"num_inference_steps": 20, "sampler": "dpm-solver++", "generator": noise}
        for i, image in zip(some, sample(model, [config.prior_prompt] * len(some), **options)):
            save_png(image, paths[i])
            on_image()
    add_up(torch.zeros(1, device=model.device))  # all processes have drawn theirs
    return [open_image(path) for path in paths]
