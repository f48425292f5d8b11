"""Textual inversion, task by task of exercise E4 (`000`; lecture notes `002`, 16; exam questions `003`, 27).

v* = argmin_v  E[ || epsilon - epsilon_theta(z_t, t, c(template with v)) ||^2 ]        (arXiv 2208.01618, eq. 2)
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from minti.adapter import Adapter
from minti.images import to_pixels
from minti.model import StableDiffusion
from minti.training import Trainer
from minti.utils import Generators, check, plugin, randn
from minti.vae import DiagonalGaussian
from minti.wrapper import TrainingWrapper

Images = Sequence[Image.Image] | Tensor  # of any size, or pixels (n, 3, H, W) in [-1, 1]


@dataclass(frozen=True, kw_only=True)
class TextualInversionConfig:
    """What word to learn and how. Further options, those of `minti.personalization.config`, make it the class there.

    placeholder_token, num_vectors: the new word, and how many embedding vectors it has.
    initializer_token: a known word or phrase, a learned word's file or vectors (n, d); "": the model's; None: random.
    row_update: "new_rows" trains the new vectors alone; "restore" is E4's recipe: train the whole embedding matrix and
        restore its other rows after every step. Both learn the same.
    templates: "object", "style", or prompts with `{}` where the word goes; None: the model's own.
    steps: optimizer steps; None: `max_steps`, or with `minti.monitored` fewer, until the validation loss levels off.
    batch_size: images per forward pass; None: the model's own, 1 on SD v1.4 and 8 on the toybox.
    gradient_accumulation, gradient_checkpointing: batches per step; whether to save memory at the cost of time.
    learning_rate: of AdamW; None: 0.3 times the root mean square of the vocabulary's vectors, about 4e-3 on SD v1.4.
    max_gradient_norm: the gradient is clipped to this norm; None: it is not."""

    placeholder_token: str = "<concept>"
    num_vectors: int = 1
    initializer_token: Any = ""
    row_update: str = "new_rows"
    templates: str | Sequence[str] | None = None
    steps: int | None = None
    max_steps: int = 3000
    batch_size: int | None = None
    gradient_accumulation: int = 1
    gradient_checkpointing: bool = False
    learning_rate: float | None = None
    weight_decay: float = 1e-2
    max_gradient_norm: float | None = 1.0
    seed: int = 0
    captions = rate = loss = training_images = optimizer = None  # what `minti.personalization.config` changes

    def __new__(cls, **options: Any) -> "TextualInversionConfig":
        own = cls is not TextualInversionConfig or options.keys() <= cls.__dataclass_fields__.keys()
        return object.__new__(cls if own else plugin("minti.personalization.config:PersonalizationConfig"))

    def __post_init__(self) -> None:
        check("runs.checks:config", self)


def diffusion_loss(
    wrapper: TrainingWrapper | StableDiffusion,
    latents: Tensor,
    timestep_idx: int | Tensor,
    embeddings: Tensor,
    noise: Tensor | None = None,
    generator: Generators = None,
) -> Tensor:
    """Task 1: the diffusion loss, ((noise - prediction) ** 2).mean(), () float32 (DDPM, eq. 14; `002`, 4.3; `003`, 26).
    latents, noise: (b, c, h, w), clean and scaled; standard normal, drawn from `generator` when absent.
    timestep_idx: an int, () or (b,), in [0, num_train_timesteps). embeddings: (b, m, d), the encoded prompts."""
    timesteps = torch.as_tensor(timestep_idx, device=latents.device).expand(len(latents))
    if noise is None:
        noise = randn(latents.shape, generator, latents.device, latents.dtype)
    noisy_latents = wrapper.scheduler.add_noise(latents, noise, timesteps)
    prediction = wrapper.unet(noisy_latents, timesteps, embeddings)
    target = wrapper.scheduler.target(latents, noise, timesteps)  # the noise, in SD v1.4
    return ((target.float() - prediction.float()) ** 2).mean()


def prepare_for_textual_inversion(wrapper: TrainingWrapper) -> Optimizer:
    """Task 2: freezes the networks, adds the placeholder's tokens, and makes their embedding vectors, nothing else,
    trainable. They are attached to the model until `wrapper.detach()`, or until `textual_inversion` begins.
    Raises ValueError: no new word can be called so, or the initializer is unknown; see `runs.word_checks`."""
    model, config, word = wrapper.model, wrapper.config, wrapper.config.placeholder_token
    wrapper.detach()
    if word in model.learning:
        plugin("minti.personalization.removal:begin_anew")(wrapper)
    check("runs.word_checks:check_new_word", wrapper)
    vectors = wrapper.initial_vectors()  # k d
    model.freeze(checkpointing=config.gradient_checkpointing)
    ids = model.add_word(word, vectors)
    kind = MaskedEmbedding if config.row_update == "restore" else LearnedEmbedding
    embedding = wrapper.embedding = model.learning[word] = kind(model.text_encoder.get_input_embeddings(), ids)
    embedding.name = f"the word {word}"
    embedding.values.data.copy_(vectors)  # as they are, where the model's are rounded to half precision
    if config.optimizer is not None:
        return wrapper.attach(config.optimizer(wrapper))
    return wrapper.attach(AdamW(embedding.trainable(), lr=wrapper.learning_rate, weight_decay=config.weight_decay))


class LearnedEmbedding(Adapter):
    """The embedding vectors of a new word, `values`, (k, d) float32: all that is trained. The matrix's other rows,
    49,408 in SD v1.4, have no gradient, optimizer state or copy, and cannot change."""

    def __init__(self, embedding: nn.Embedding, ids: Sequence[int]):
        super().__init__()
        self.values = nn.Parameter(embedding.weight[list(ids)].detach().float().clone())
        self.first = ids[0]  # the word's other tokens follow

    def hooks(self, model: Any) -> Iterator[Callable[[], Any]]:
        """Replaces the embedding layer's output at the word's positions, so that the gradient goes there only."""
        yield model.text_encoder.get_input_embeddings().register_forward_hook(self._put).remove

    def _put(self, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        (ids,) = inputs  # b m
        own = (ids >= self.first) & (ids < self.first + len(self.values))
        return output.masked_scatter(own[..., None], self.values[ids[own] - self.first].to(output.dtype))  # b m d

    @torch.no_grad()
    def after_step(self, model: Any) -> None:
        """Copies the vectors into the embedding matrix, so that the model has the word without the adapter too."""
        self.constrain(self.values)
        weight = model.text_encoder.get_input_embeddings().weight
        weight[self.first : self.first + len(self.values)] = self.values.to(weight)


class MaskedEmbedding(Adapter):
    """Exercise E4's recipe: the whole embedding matrix is trained, and all other rows are restored after every step."""

    def __init__(self, embedding: nn.Embedding, ids: Sequence[int]):
        super().__init__()
        self.own = slice(ids[0], ids[-1] + 1)
        self.embedding, self.before = (embedding,), None  # in a tuple, which nn.Module does not register

    @property
    def values(self) -> Tensor:
        """The new word's rows, (k, d), a view of the matrix."""
        return self.embedding[0].weight[self.own]

    def trainable(self) -> list[nn.Parameter]:
        """The whole matrix, as in E4's own code."""
        return [self.embedding[0].weight]

    def hooks(self, model: Any) -> Iterator[Callable[[], Any]]:
        """Only while it is attached does the matrix take a gradient."""
        weight = self.embedding[0].weight.requires_grad_(True)
        self.before_step(model)
        yield lambda: setattr(weight, "grad", None) or weight.requires_grad_(False)
        yield lambda: self.before is None or self.after_step(model)  # a step that was begun, and not ended

    @torch.no_grad()
    def before_step(self, model: Any, optimizer: Optimizer | None = None) -> None:
        """Copies the matrix. If other words made it longer, AdamW's state gets zeros; if shorter, it is cut."""
        weight = self.embedding[0].weight
        self.before = weight.clone()
        state = {} if optimizer is None else optimizer.state.get(weight, {})
        for key, value in state.items():
            if value.ndim == 2 and 1 < len(value) != len(weight):
                state[key] = F.pad(value, (0, 0, 0, len(weight) - len(value)))

    @torch.no_grad()
    def after_step(self, model: Any) -> None:
        """The embedding row masking: every row but the new ones is what it was before the step."""
        if self.before is not None and not torch.equal(self.before[self.own], self.values):  # a step was taken
            self.before[self.own] = self.values
            self.embedding[0].weight[: len(self.before)] = self.before
        self.before = None  # once: what is learned or loaded from now on is newer
        self.constrain(self.values)

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Tensor]:
        return {"values": self.values.detach()}

    @torch.no_grad()
    def load_state_dict(self, state: Any, *args: Any, **options: Any) -> None:
        self.values.copy_(state["values"])


class Batch(NamedTuple):
    """A forward pass: latents and noise (b, c, h, w), timesteps (b,), prompts, and the images' indices."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    prompts: list[str]
    indices: list[int]


class TrainingImages:
    """The training images as the VAE's distributions, mean and logvar (n, c, h, w), encoded once for all."""

    @torch.no_grad()
    def __init__(self, model: StableDiffusion, images: Images):
        check("runs.checks:images", images)
        if not isinstance(images, Tensor):
            images = torch.stack([to_pixels(image, model.resolution) for image in images])
        self.pixels = images
        encoded = [model.encode(pixels) for pixels in images.split(1)]
        self.mean, self.logvar = (torch.cat([getattr(one, name) for one in encoded]) for name in ("mean", "logvar"))
        self.scale, self.num_train_timesteps = model.scale, model.scheduler.config.num_train_timesteps

    def __len__(self) -> int:
        return len(self.mean)

    def latents(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Fresh scaled latents of some of the images, (b, c, h, w)."""
        return self.scale(DiagonalGaussian(self.mean[indices], self.logvar[indices]).sample(generator))

    def prompts_for(self, indices: Sequence[int], prompts: Sequence[str], chosen: Sequence[int]) -> list[str]:
        """The prompts of some of the images: the chosen ones (where images have captions, those instead)."""
        return [prompts[i % len(prompts)] for i in chosen]

    def batch(self, size: int, prompts: Sequence[str], generator: torch.Generator) -> Batch:
        """Random images, latents, prompts, timesteps and noise."""
        indices = torch.randint(len(self), (size,), generator=generator)
        latents = self.latents(indices, generator)
        chosen = self.prompts_for(indices, prompts, torch.randint(len(prompts), (size,), generator=generator))
        timesteps = torch.randint(self.num_train_timesteps, (size,), generator=generator).to(latents.device)
        noise = randn(latents.shape, generator, latents.device, latents.dtype)
        return Batch(latents, noise, timesteps, chosen, indices.tolist())


def batch_loss(model: StableDiffusion, batch: Batch) -> Tensor:
    """Task 1's loss of a batch; its prompts are encoded with the word as it is now."""
    return diffusion_loss(model, batch.latents, batch.timesteps, model.encode_prompt(batch.prompts), batch.noise)


def textual_inversion(
    wrapper: TrainingWrapper, images: Images, optimizer: Optimizer | None = None, checkpoint: Any = None
) -> Trainer:
    """Task 3a: learns the word. `for step in textual_inversion(...)` takes optimizer steps; between them, and after a
    break, the model has the word as it is by then. `minti.monitored(...)` adds a validation loss and early stopping.
    `optimizer`: what task 2 returned, or another one. `checkpoint`: of an interrupted run, from `load_checkpoint`."""
    model, config = wrapper.model, wrapper.config
    wrapper.detach()  # from now on it is attached during a step only, and the trainer tells it of every step
    data = (config.training_images or TrainingImages)(model, images)  # before anything is changed
    if optimizer is None:
        optimizer = prepare_for_textual_inversion(wrapper)
        wrapper.detach()
    draw, loss = partial(data.batch, wrapper.batch_size, wrapper.prompts), config.loss or batch_loss
    trainer = wrapper.begin(wrapper.embedding, data, draw, loss, optimizer, config.steps or config.max_steps)
    if checkpoint is not None:
        plugin("minti.runs.checkpoints:resumed")(trainer, checkpoint)
    return trainer
