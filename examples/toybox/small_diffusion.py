"""A class-conditional diffusion model of 300,000 parameters, from nothing: label, training, sampling (`002`, 4, 5, 15).

The label, a one-hot vector, is projected and added to the time embedding. In training some labels are dropped, so that
the model also knows images without one: classifier-free guidance needs both. `class_conditional.py` trains and guides
it; `compare_training.py` says what each choice of a `Recipe` is worth.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from minti.adapter import Adapter
from minti.denoising import Predict, Run, make_sampler
from minti.guidance.gradients import Guidance
from minti.sampling import classifier_free_guidance
from minti.scheduler import NoiseScheduler, SchedulerConfig
from minti.training import Trainer
from minti.unet import UNet, UNetConfig
from minti.utils import randn
from resumable import Network, resumable
from small_toys import CLASSES, PATCH, SIZE, small_unet_config

LOSSES = {"L2": F.mse_loss, "L1": F.l1_loss, "Huber": partial(F.huber_loss, delta=0.1)}


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; the defaults are DDPM's, with labels."""

    schedule: str = "linear"  # or "squaredcos_cap_v2", the cosine schedule
    prediction: str = "epsilon"  # or "sample" (x_0), "v_prediction"
    loss: str = "L2"  # or "L1", "Huber"
    skips: bool = True  # the UNet's skip connections
    one_hot: bool = True  # or the label is one number, 1/8 to 1
    dropout: float = 0.15  # the probability that a label is dropped, p_uncond
    ema: float = 0.998  # the decay of the moving average of the weights
    decay: bool = False  # whether the learning rate goes to 0 in the end
    steps: int = 2400
    batch_size: int = 32
    learning_rate: float = 1e-3

    def scheduler(self) -> NoiseScheduler:
        """The noise schedule."""
        ends = {"beta_start": 0.0001, "beta_end": 0.02, "set_alpha_to_one": True}
        return NoiseScheduler(SchedulerConfig(beta_schedule=self.schedule, prediction_type=self.prediction, **ends))

    def encoded(self, classes: Tensor) -> Tensor:
        """Class indices, (n,), as the network gets them: (n, k), or (n, 1)."""
        return F.one_hot(classes, len(CLASSES)).float() if self.one_hot else (classes[:, None] + 1) / len(CLASSES)


class Label(Adapter):
    """Class conditioning: a one-hot label, projected and added to the time embedding (`002`, 15, 3; the class embedding
    of arXiv 2105.05233). The UNet gets labels, (b, k), in place of a context; a row of zeros is no label."""

    name = "the label"

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.projection = nn.Linear(classes, width, bias=False)

    def hooks(self, unet: UNet) -> Iterator[Callable[[], None]]:
        """Takes the labels from the UNet's inputs, and adds what they become to the time embedding."""
        embedded = None

        def take(unet: UNet, inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            nonlocal embedded
            latents, timesteps, labels = inputs
            embedded = self.projection(labels)
            return latents, timesteps, latents.new_zeros(len(latents), 1, unet.config.cross_attention_dim)

        yield unet.register_forward_pre_hook(take).remove
        yield unet.time_embedding.register_forward_hook(lambda layer, inputs, time: time + embedded).remove


class WithoutSkips(UNet):
    """A UNet whose skip connections carry zeros; as many parameters, of which some have nothing to do."""

    def right(self, x: Tensor, skips: list[Tensor], time_emb: Tensor, context: Tensor) -> Tensor:
        """The decoder half, which knows the bottom only."""
        return super().right(x, [torch.zeros_like(skip) for skip in skips], time_emb, context)


class ClassConditional(nn.Module):
    """A UNet with its label: images (b, 3, 16, 16), timesteps (b,), labels (b, k) -> its prediction, (b, 3, 16, 16)."""

    def __init__(self, config: UNetConfig, classes: int = len(CLASSES), skips: bool = True):
        super().__init__()
        self.unet = (UNet if skips else WithoutSkips)(config)
        self.label = Label(classes, 4 * config.block_out_channels[0])

    def forward(self, pixels: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        with self.label.attached(self.unet):
            return F.pixel_shuffle(self.unet(F.pixel_unshuffle(pixels, PATCH), timesteps, labels), PATCH)


def new_model(recipe: Recipe, seed: int, widths: tuple[int, ...] = (32, 32)) -> ClassConditional:
    """Random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ClassConditional(small_unet_config(widths), len(CLASSES) if recipe.one_hot else 1, recipe.skips)


def training(model: ClassConditional, recipe: Recipe, pixels: Tensor, classes: Tensor, seed: int) -> Trainer:
    """The run. Every recipe draws the same images, timesteps, noise and dropped labels in the same order."""
    scheduler, network, labels = recipe.scheduler(), Network(model, recipe.ema), recipe.encoded(classes)

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = torch.randint(len(pixels), (recipe.batch_size,), generator=generator)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (recipe.batch_size,), generator=generator)
        noise = torch.randn(pixels[rows].shape, generator=generator)
        kept = torch.rand(recipe.batch_size, 1, generator=generator) >= recipe.dropout
        return pixels[rows], labels[rows] * kept, timesteps, noise

    def loss(network: Network, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        clean, labels, timesteps, noise = batch
        with sdpa_kernel(SDPBackend.MATH):  # of so few positions, plain matrix products are faster
            prediction = network.module(scheduler.add_noise(clean, noise, timesteps), timesteps, labels)
        return LOSSES[recipe.loss](prediction, scheduler.target(clean, noise, timesteps))

    def rate(taken: int) -> float:
        return min(1.0, (taken + 1) / 100) * (1 - taken / recipe.steps if recipe.decay else 1)

    optimizer = torch.optim.AdamW(network.trainable(), lr=recipe.learning_rate, weight_decay=0)
    generator = torch.Generator().manual_seed(seed)
    return Trainer(network, network, draw, loss, optimizer, recipe.steps, generator, rate, max_norm=1.0)


def trained(
    recipe: Recipe, path: Path, pixels: Tensor, classes: Tensor, seed: int, quiet: bool = True
) -> tuple[ClassConditional, ClassConditional]:
    """The averaged model and that of the last weights; resumes from the checkpoint `path`."""
    trainer = training(new_model(recipe, seed), recipe, pixels, classes, seed)
    network = trainer.adapter
    for _ in resumable(trainer, path, asdict(recipe) | {"seed": seed}, path.stem, quiet):
        network.average.update_parameters(network.module)
    return tuple(model.eval().requires_grad_(False) for model in (network.average.module, network.module))


def clipped(scheduler: NoiseScheduler, predict: Predict) -> Predict:
    """The prediction of an image in [-1, 1], as DDPM samples pixels: what lies beyond is cut off."""

    def cut(latents: Tensor, t: float) -> Tensor:
        clean = scheduler.clean_and_noise(predict(latents, t), latents, t)[0].clamp(-1, 1)
        return scheduler.target(clean, scheduler.noise_from_clean(latents, clean, t), t)

    return cut


@torch.no_grad()
def sampled(
    model: ClassConditional,
    scheduler: NoiseScheduler,
    labels: Tensor,
    scale: float = 1.0,
    guidance: Callable[[slice], Guidance] = lambda some: lambda predict: predict,
    steps: int = 50,
    sampler: str = "ddpm",
    seed: int = 0,
    batch_size: int = 128,
    alike: bool = False,
) -> Tensor:
    """Images of labels, (n, k) -> (n, 3, 16, 16) in [-1, 1], with classifier-free guidance.

        epsilon = epsilon(x, 0) + s (epsilon(x, y) - epsilon(x, 0))
                = (1 + w) epsilon(x, y) - w epsilon(x, 0),    s = 1 + w    (`002`, 15, 2)

    `guidance`: what else changes the prediction of the images of a slice. `alike`: all images from one noise."""
    generator, walk, parts = torch.Generator().manual_seed(seed), make_sampler(sampler), []
    for start in range(0, len(labels), batch_size):
        some = slice(start, start + batch_size)
        predict = classifier_free_guidance(model, labels[some], torch.zeros_like(labels[some]), scale)
        predict = clipped(scheduler, guidance(some)(predict))
        source = [torch.Generator().manual_seed(seed) for _ in labels[some]] if alike else generator
        noise = randn((len(labels[some]), 3, SIZE, SIZE), source, labels.device, labels.dtype)
        *_, last = walk(predict, Run(noise, scheduler, walk.stops(scheduler, steps), source))
        parts.append(last.latents)
    return torch.cat(parts)
