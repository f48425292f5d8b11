"""`TrainingWrapper`: a model and a config under the names of exercise E4."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from minti.adapter import Adapter
from minti.model import StableDiffusion
from minti.templates import TEMPLATES
from minti.text import single_token_id
from minti.training import Trainer
from minti.utils import plugin


class TrainingWrapper:
    """A model and a config, with the model's parts under E4's names.

    batch_size, templates, initializer_token, learning_rate: the config's, or what suits the model.
    subject: what prompts call the thing that is learned. vocabulary_norm: mean length of the vocabulary's vectors.
    embedding: the adapter that learns a new word, once task 2 has run; its `values`, (k, d), are the vectors.
    trainer: the last run, once it has begun. metadata: what else must be the same for it to be resumed."""

    unet, vae, scheduler = (property(attrgetter(f"model.{part}")) for part in ("unet", "vae", "scheduler"))
    text_encoder, tokenizer = (property(attrgetter(f"model.{part}")) for part in ("text_encoder", "tokenizer"))
    placeholder_ids = property(lambda self: self.model.words.get(self.config.placeholder_token, []))

    def __init__(self, model: StableDiffusion, config: Any, subject: str = "", learning_rate: float | None = None):
        vocabulary = model.text_encoder.get_input_embeddings().weight.detach()[: model.tokenizer.vocab_size].float()
        if learning_rate is None:  # of a word; about 4e-3 on SD v1.4
            learning_rate = 0.3 * vocabulary.square().mean().sqrt().item()
        self.model, self.config, self.subject = model, config, subject or config.placeholder_token
        self.learning_rate = learning_rate if config.learning_rate is None else config.learning_rate
        self.vocabulary_norm = vocabulary.norm(dim=1).mean().item()
        self.batch_size = config.batch_size or model.defaults.batch_size
        token, templates = config.initializer_token, config.templates or model.defaults.templates
        self.initializer_token = model.defaults.initializer_token if token == "" else token
        self.templates: Sequence[str] = TEMPLATES[templates] if isinstance(templates, str) else templates
        self.embedding: Adapter | None = None
        self.trainer: Trainer | None = None
        self.metadata: dict[str, str | None] = {}
        self._attached = ExitStack()

    @property
    def prompts(self) -> list[str]:
        """The training prompts: every template with the subject in it, or every image's caption."""
        if self.config.captions is not None:
            return plugin("minti.personalization.augmented_images:Captions")(self.config.captions, self.subject)
        return [template.replace("{}", self.subject) for template in self.templates]

    def initial_vectors(self) -> Tensor:
        """What a new word starts from, (num_vectors, d): of a known word, a phrase, a file, a tensor, or random."""
        token, embedding = self.initializer_token, self.text_encoder.get_input_embeddings()
        if not (isinstance(token, str) and token.isalnum()):
            return plugin("minti.personalization.initialization:initial_vectors")(self)
        return embedding.weight[[single_token_id(self.tokenizer, token)]].repeat(self.config.num_vectors, 1)

    def attach(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Attaches the embedding, and tells it of every step of the optimizer, until `detach`."""
        model, embedding = self.model, self.embedding
        self._attached.enter_context(embedding.attached(model))
        before = optimizer.register_step_pre_hook(lambda *_: embedding.before_step(model, optimizer))
        after = optimizer.register_step_post_hook(lambda *_: embedding.after_step(model))
        self._attached.callback(before.remove)
        self._attached.callback(after.remove)
        return optimizer

    def detach(self) -> None:
        """Detaches the embedding; the model has the word as it is now."""
        self._attached.close()
        if self.embedding is not None and self.model.learning.get(self.subject) is self.embedding:
            self.embedding.after_step(self.model)

    def begin(self, adapter: Adapter, data: Any, draw: Callable, loss: Callable, optimizer: Any, steps: int) -> Trainer:
        """A training run with the config's settings, see `Trainer`. `data`: the training images."""
        config, generator = self.config, torch.Generator().manual_seed(self.config.seed)
        rate = config.rate or (lambda taken: 1.0)
        options = {"accumulation": config.gradient_accumulation, "max_norm": config.max_gradient_norm}
        self.trainer = Trainer(self.model, adapter, draw, loss, optimizer, steps, generator, rate, **options)
        self.trainer.training, self.trainer.data = self, data
        return self.trainer
