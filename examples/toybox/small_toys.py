"""Toys of 16 x 16 pixels, and a classifier of them: the judge of clean images, or of noisy ones for guidance.

An image is the middle of the toybox's, 48 x 48 pixels, averaged over blocks of 3 x 3: one big toy of any shape, pattern
and colours, as a photo. Its class is its shape.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from minti.evaluation.distribution import fit_gaussian, frechet_distance, inception_score, kernel_distance
from minti.scheduler import NoiseScheduler
from minti.training import Trainer
from minti.unet import EncoderHalf, UNetConfig
from networks import load_weights, save_weights
from painting import draw
from resumable import Network, resumable
from world import BACKGROUNDS, COLOURS, SHAPES, random_scene

SIZE, PATCH, CLASSES = 16, 2, SHAPES
HEADS = {"shape": SHAPES, "main": tuple(COLOURS), "second": tuple(COLOURS), "background": tuple(BACKGROUNDS)}


def small_toys(count: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Images, (n, 3, 16, 16) in [-1, 1], and their labels, {head: (n,)}."""
    pixels, labels = torch.empty(count, 3, SIZE, SIZE), {head: torch.empty(count, dtype=torch.long) for head in HEADS}
    for i in range(count):
        rng = np.random.default_rng((71, seed, i))
        scene = replace(random_scene(rng, pair_rate=0), size="big", place="in the middle", style="photo")
        middle = draw(scene, rng)[8:56, 8:56].reshape(SIZE, 3, SIZE, 3, 3).mean(axis=(1, 3))
        pixels[i] = torch.from_numpy(middle).permute(2, 0, 1) * 2 - 1
        toy = scene.toys[0]
        seen = {"shape": toy.shape, "main": toy.main, "second": toy.second, "background": scene.background}
        for head, answer in seen.items():
            labels[head][i] = HEADS[head].index(answer)
    return pixels, labels


Images = tuple[Tensor, dict[str, Tensor]]


def true_images(count: int) -> tuple[Images, Images]:
    """Two sets of images that no training saw: one to compare samples with, and one to be compared itself."""
    return small_toys(count, 1), small_toys(count, 2)


def small_unet_config(widths: tuple[int, ...]) -> UNetConfig:
    """Of a UNet for these images, which sees blocks of 2 x 2 pixels as one position with 12 channels."""
    channels, levels = 3 * PATCH**2, len(widths)
    return UNetConfig(
        sample_size=SIZE // PATCH,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=8,
    )


class Classifier(EncoderHalf):
    """A classifier of images with noise, p(y | x_t, t): the encoder half of the UNet, as `002`, 15, 3, recommends, and
    two linear layers. On clean images, at timestep 0, it is the judge."""

    def __init__(self, widths: tuple[int, ...] = (24, 48), hidden: int = 64):
        super().__init__(small_unet_config(widths))
        positions = (SIZE // PATCH // 2 ** (len(widths) - 1)) ** 2
        self.hidden = nn.Linear(widths[-1] * positions, hidden)
        self.heads = nn.ModuleDict({head: nn.Linear(hidden, len(answers)) for head, answers in HEADS.items()})

    def features(self, pixels: Tensor, timesteps: Tensor) -> Tensor:
        """(b, 3, 16, 16) and (b,) -> (b, hidden), for the distances; normalised, or one odd image would decide them."""
        time, nothing = self.embed_time(timesteps, pixels.dtype), pixels.new_zeros(len(pixels), 1, 8)
        x, _ = self.left(F.pixel_unshuffle(pixels, PATCH), time, nothing)
        return F.silu(F.layer_norm(self.hidden(x.flatten(1)), (self.hidden.out_features,)))

    def forward(self, pixels: Tensor, timesteps: Tensor) -> dict[str, Tensor]:
        """(b, 3, 16, 16) in [-1, 1] and (b,) -> {head: (b, number of answers)} logits."""
        features = self.features(pixels, timesteps)
        return {head: layer(features) for head, layer in self.heads.items()}

    def log_probability(self, pixels: Tensor, t: int, classes: Tensor) -> Tensor:
        """log p(y | x_t, t) of the wanted classes, (b,): what classifier guidance climbs."""
        log_p = self(pixels, torch.full((len(pixels),), t))["shape"].log_softmax(dim=1)
        return log_p.gather(1, classes[:, None])[:, 0]


def trained_classifier(
    path: Path,
    pixels: Tensor,
    labels: dict[str, Tensor],
    scheduler: NoiseScheduler | None,
    steps: int,
    seed: int,
    quiet: bool = True,
) -> Classifier:
    """The classifier of a file, or a new one, trained and written there: of noisy images, or without a scheduler of
    clean ones."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier = Classifier()
    if path.exists():
        classifier.load_state_dict(load_weights(path))
        return classifier.eval().requires_grad_(False)
    network = Network(classifier, ema_decay=0.99)

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.randint(len(pixels), (64,), generator=generator)
        if scheduler is None:
            return pixels[rows], torch.zeros(64, dtype=torch.long), rows
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (64,), generator=generator)
        noise = torch.randn(pixels[rows].shape, generator=generator)
        return scheduler.add_noise(pixels[rows], noise, timesteps), timesteps, rows

    def loss(_: Network, drawn: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x, timesteps, rows = drawn
        with sdpa_kernel(SDPBackend.MATH):
            answers = classifier(x, timesteps)
        return sum(F.cross_entropy(answers[head], labels[head][rows]) for head in HEADS)

    optimizer = torch.optim.AdamW(network.trainable(), lr=2e-3)
    generator, rate = torch.Generator().manual_seed(seed), lambda taken: 1 - taken / steps
    trainer = Trainer(network, network, batch, loss, optimizer, steps, generator, rate, max_norm=1.0)
    for _ in resumable(trainer, path.with_suffix(".pt"), {"steps": steps, "seed": seed}, path.stem, quiet):
        network.average.update_parameters(classifier)
    classifier.load_state_dict(network.average.module.state_dict())
    save_weights(path, classifier.state_dict())
    return trained_classifier(path, pixels, labels, scheduler, steps, seed)


@torch.no_grad()
def judged(judge: Classifier, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The judge's features, (n, d), and logits, {head: (n, k)}, of images."""
    zero = torch.zeros(len(pixels), dtype=torch.long)
    features = torch.cat([judge.features(part, zero[: len(part)]) for part in pixels.clamp(-1, 1).split(256)])
    return features, {head: layer(features) for head, layer in judge.heads.items()}


def bootstrap(statistic: Callable[[Tensor], float], features: Tensor, times: int = 20) -> float:
    """The standard error of a statistic: its standard deviation over sets drawn with replacement."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(len(features), (len(features),), generator=generator) for _ in range(times)]
    return float(np.std([statistic(features[rows]) for rows in drawn], ddof=1))


def measured(judge: Classifier, pixels: Tensor, classes: Tensor, real: Tensor) -> dict[str, float]:
    """The share of images whose shape is the wanted class, (n,), and the distances of their features from those of true
    images, (m, d); each with its standard error, of these images."""
    features, answers = judged(judge, pixels)
    right = (answers["shape"].argmax(dim=1) == classes).double().mean().item()
    truth = fit_gaussian(real)

    def fid(features: Tensor) -> float:
        return frechet_distance(fit_gaussian(features), truth)

    def kid(features: Tensor) -> float:
        return kernel_distance(features, real)

    found = {"right": right, "right_error": (right * (1 - right) / len(pixels)) ** 0.5}
    found |= {"fid": fid(features), "fid_error": bootstrap(fid, features)}
    found |= {"kid": kid(features), "kid_error": bootstrap(kid, features)}
    return found | {"inception_score": inception_score(answers["shape"].softmax(dim=1))}
