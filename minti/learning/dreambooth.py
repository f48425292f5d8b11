"""DreamBooth: a model's weights learn a thing, or a LoRA beside them, and pictures of its class keep the rest.

L = L_instance + lambda L_class        (arXiv 2208.12242, eq. 2; slides `001`, "How Does DreamBooth Avoid Forgetting?")

The thing is called by a rare word and its class ("sks toy"), or by a new word that learns along (pivotal tuning).
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.optim import AdamW, Optimizer

from minti.images import open_image, save_png
from minti.learning.loop import Loop
from minti.learning.losses import SQUARES, Measure
from minti.learning.pictures import Batch, Concept, Images
from minti.learning.preparation import concept_of
from minti.learning.run_state import RunState
from minti.learning.saving import restore
from minti.learning.settings import DreamBoothConfig, Training, TrainingWrapper
from minti.learning.textual_inversion import word_loss
from minti.learning.watching import FixedSet, TrainingState, Watched
from minti.machine.processes import add_up, rank, world_size
from minti.model import StableDiffusion
from minti.parts.lora import LoRA
from minti.parts.network import Network
from minti.parts.part import Part
from minti.parts.together import Together
from minti.parts.word import Word
from minti.text_to_image import sample


class Batches(NamedTuple):
    """What a step learns from: pictures of the thing, and of its class."""

    instance: Batch
    prior: Batch | None = None

    def __str__(self) -> str:
        return f"{self.instance}" if self.prior is None else f"{self.instance}, of the class {self.prior}"


def dreambooth_loss(
    model: StableDiffusion, batches: Batches, prior_weight: float = 1.0, measure: Measure = SQUARES
) -> Tensor:
    """L_instance + lambda L_class, () float32: two batches that are measured each by itself."""
    loss = word_loss(model, batches.instance, measure)
    return loss if batches.prior is None else loss + prior_weight * word_loss(model, batches.prior, measure)


class DreamBooth(Training):
    """A model, a config, and the part that learns; `word`, learned before, then names the thing and learns along.

    Attributes:
        part, lora: what learns, and the LoRA in it, if there is one; the model has it within `part.inside(model)`.

    Raises ValueError: a word and a network, or see `LoRA` and `Network`.
    """

    def __init__(self, model: StableDiffusion, config: DreamBoothConfig, word: TrainingWrapper | None = None):
        whole = config.learns == "network"
        subject = word.subject if word else f"{config.placeholder_token} {config.initializer_token}"
        rate = model.defaults.network_learning_rate if whole else model.defaults.lora_learning_rate
        steps = model.defaults.tuning_steps // (1 if config.prior_weight else 2)
        config = replace(config, steps=config.steps or steps)
        super().__init__(model, config, subject, 0.5 * rate if word else rate)  # a word has most of it already
        self.word, self.lora, self.facts = word, None, {"model": model.fingerprint}  # before it learns
        if word and (whole or not isinstance(word.rows, Word)):
            raise ValueError("a new word learns along with a LoRA only, and by row_update='new_rows'")
        if not whole:
            how = (config.rank, config.alpha, tuple(config.layers), config.text_encoder)
            self.lora = LoRA(model, *how, torch.Generator().manual_seed(config.seed))
        learner: Part = self.lora or Network(model, config.text_encoder)
        self.facts["word"] = word and str(word.rows.values.detach().double().sum().item())
        self.part = Together(learner, word.rows) if word else learner

    def optimizer(self, make: Callable[..., Optimizer] = AdamW) -> Optimizer:
        """For all that learns, a word at a rate of its own."""
        groups = [{"params": (self.lora or self.part).trained(), "lr": self.learning_rate}]
        if self.word:
            rate, own = self.config.word_learning_rate, 0.1 * self.word.learning_rate
            groups.append({"params": self.word.rows.trained(), "lr": own if rate is None else rate})
        return make(groups, weight_decay=self.config.weight_decay)


def dreambooth(
    training: DreamBooth,
    images: Images,
    class_images: Images = (),
    checkpoint: RunState | None = None,
    optimizer: Callable[..., Optimizer] = AdamW,
) -> Iterator[TrainingState]:
    """Learns; yields after every step. What is left in the end is what the last step made.

    `class_images`: what `class_pictures` gives, or one's own. `checkpoint`: what `load_checkpoint` found of a run that
    was interrupted. `optimizer`: makes one, of parameter groups; AdamW, or one of a library's in 8 bits.

    Raises ValueError, TrainingError: no pictures, captions that do not fit them, a checkpoint of another run.
    """
    model, config, size = training.model, training.config, training.batch_size
    concept = concept_of(model, config, images)
    prior = Concept(model, class_images) if config.prior_weight else None
    training.facts["class_images"] = prior and prior.fingerprint

    def draw(generator: torch.Generator) -> Batches:
        instance = concept.batch(size, training.prompts, generator)
        return Batches(instance, prior and prior.batch(size, [config.prior_prompt], generator))

    model.freeze(checkpointing=config.gradient_checkpointing)
    made = training.optimizer(optimizer)
    training.part.follow(made, model)
    loss = partial(dreambooth_loss, prior_weight=config.prior_weight, measure=config.measure)
    how = {"accumulation": config.gradient_accumulation, "max_norm": config.max_gradient_norm, "rate": config.rate}
    generator = torch.Generator().manual_seed(config.seed)
    loop = Loop(model, training.part, draw, loss, made, config.steps, generator, **how)
    fixed = FixedSet(concept, max(8, 2 * size), torch.Generator().manual_seed(config.seed + 1))
    own = partial(word_loss, measure=config.measure)
    training.run = Watched(loop, fixed, training.prompts, size, loss=own, keeps=False)
    if checkpoint is not None:
        restore(training, checkpoint)
    yield from training.run


def class_pictures(
    model: StableDiffusion, config: DreamBoothConfig, folder: Path, on_picture: Callable[[], None] = lambda: None
) -> list[Image.Image]:
    """The model's own pictures of the class, drawn before it learns, unless the folder has them already. They lie in a
    folder of their own for each model, prompt and seed. Raises OSError: they cannot be written."""
    asked = f"{model.fingerprint} {config.prior_prompt} {config.seed}".encode()
    folder = Path(folder) / hashlib.sha256(asked).hexdigest()[:8]
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:04}.png" for i in range(config.class_pictures or model.defaults.class_pictures)]
    missing = [i for i, path in enumerate(paths) if not path.is_file()][rank() :: world_size()]
    for start in range(0, len(missing), 8):
        some = missing[start : start + 8]
        noise = [torch.Generator().manual_seed(config.seed + i) for i in some]
        options = {"num_inference_steps": 20, "sampler": "dpm-solver++", "generator": noise}
        for i, picture in zip(some, sample(model, [config.prior_prompt] * len(some), **options)):
            save_png(picture, paths[i])
            on_picture()
    add_up(torch.zeros(1, device=model.device))  # all processes have drawn theirs
    return [open_image(path) for path in paths]
