"""Trains the networks of a cascade: a base of 16 × 16 pixels, and super-resolution to 64 × 64 with and without
conditioning augmentation (`001`, "Cascaded Diffusion Models"; arXiv 2106.15282).

    python examples/toybox/train_super_resolution.py --output outputs/super-resolution        (17 minutes)

All three begin as the toybox's UNet and are trained whole. "augmented" sees low-resolution images with the noise of a
random level s, "clean" sees them as they are. "base" draws low-resolution images, of pixels and not latents. A network
whose file is in --output already is left as it is.
"""

import examples_on_path
from support.command_line import arguments, finite, load, make_writable, run, whole

import argparse
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import minti
from data import draw_captions, draw_pictures
from minti.adapters.compose import Compose
from minti.adapters.network import Network
from minti.adapters.super_resolution import SuperResolution, augmented
from minti.formats.tensors import read_tensors, write_tensors
from minti.images import from_bytes
from minti.training import Trainer
from minti.unet import UNet
from minti.utils import randn
from minti.vae import DiagonalGaussian
from resumable import cosine

FACTOR = 4  # from 64 to 16 pixels
LEVELS = range(0, 225, 25)  # s in training; at 200, 0.81 of the image and 0.59 of noise
BATCH = 16
FASTER = 20, 4  # times the learning rate: of the adapter, whose weights begin at zero; of the base's new ends
DROP = 0.5  # fraction of prompts that are replaced by "": the low-resolution image must suffice
NETWORKS = {"augmented": LEVELS, "base": None, "clean": range(1)}


class Batch(NamedTuple):
    """Clean images or latents and noise (b, c, 16, 16), timesteps (b,), prompts; the low image, (b, 3, 16, 16), with
    the noise of its level, (b,)."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    prompts: list[str]
    low: Tensor
    level: Tensor


def reduced(pixels: Tensor) -> Tensor:
    """The low-resolution image, the mean of each 4 × 4 pixels: (b, 3, 64, 64) -> (b, 3, 16, 16)."""
    return F.avg_pool2d(pixels, FACTOR)


class LowAndHigh:
    """The training images, encoded to latents once, and reduced."""

    @torch.no_grad()
    def __init__(self, model: minti.StableDiffusion, count: int, quiet: bool | None):
        self.model, moments, low = model, [], []
        for part in tqdm(draw_pictures(count).split(50), desc="encoding", disable=quiet):
            pixels = from_bytes(part)
            gaussian = model.encode(pixels)
            moments.append(torch.cat([gaussian.mean, gaussian.logvar], dim=1).half())
            low.append(reduced(pixels))
        self.moments, self.low = torch.cat(moments), torch.cat(low).to(model.device)

    def batch(self, size: int, levels: range | None, generator: torch.Generator) -> Batch:
        """Images, new captions, timesteps, noise, levels; without levels the low images are what is drawn."""
        pick = lambda *numbers: torch.randint(*numbers, (size,), generator=generator)  # noqa: E731
        indices, caption_seed = pick(len(self.low)), int(torch.randint(2**62, (), generator=generator))
        low, timesteps = self.low[indices], pick(1000)
        timesteps[::2] = pick(*((0, 1000) if levels is None else (300, 900)))[::2]  # where the low image says most
        prompts = draw_captions(indices, caption_seed, 0.1 if levels is None else DROP)
        if levels is None:
            return Batch(low, randn(low.shape, generator, low.device, low.dtype), timesteps, prompts, low, timesteps)
        level = torch.tensor(levels)[pick(len(levels))]
        gaussian = DiagonalGaussian.from_moments(self.moments[indices].float())
        latents = self.model.scale(gaussian.sample(generator))
        noise = randn(latents.shape, generator, latents.device, latents.dtype)
        low = augmented(low, level, self.model.scheduler, generator)
        return Batch(latents, noise, timesteps, prompts, low, level)


class Together(Compose):
    """The whole UNet and the super-resolution adapter, in one optimizer."""

    def trainable(self) -> list[nn.Parameter]:
        """The weights of both."""
        return [weight for adapter in self.adapters for weight in adapter.trainable()]


def base_model(model: minti.StableDiffusion) -> minti.StableDiffusion:
    """A model of 16 × 16 pixels, to be sampled as latents: the UNet but for its first and last convolution, which are
    new and random."""
    unet = UNet(replace(model.unet.config, in_channels=3, out_channels=3)).to(model.device)
    kept = {
        key: tensor for key, tensor in model.unet.state_dict().items() if not key.startswith(("conv_in", "conv_out"))
    }
    unet.load_state_dict(kept, strict=False)
    return replace(model, unet=unet)


def open_network(name: str, path: Path, model: minti.StableDiffusion) -> SuperResolution | None:
    """Loads a trained network into a fresh model; its adapter, if it has one."""
    tensors = {key: tensor.float() for key, tensor in read_tensors(path).items()}
    if name != "base":
        return SuperResolution.separated(tensors, model.unet)
    model.unet.load_state_dict(tensors)
    return None


def train(name: str, model: minti.StableDiffusion, data: LowAndHigh, args: argparse.Namespace) -> dict[str, Tensor]:
    """Trains one of the networks, in a model of its own; returns its weights."""
    levels, second = NETWORKS[name], SuperResolution(model.unet)
    generator = torch.Generator().manual_seed(args.seed)
    model.freeze()
    network = Network(model)
    adapter = network if levels is None else Together(network, second)

    def loss(model: minti.StableDiffusion, batch: Batch) -> Tensor:
        second.low, second.level = batch.low, batch.level
        with torch.no_grad():
            context = model.encode_prompt(batch.prompts)
        return minti.diffusion_loss(model, batch.latents, batch.timesteps, context, batch.noise)

    ends = nn.ModuleList([model.unet.conv_in, model.unet.conv_out])
    new = list((ends if levels is None else second).parameters())
    old = [weight for weight in network.trainable() if not any(weight is other for other in new)]
    groups = [{"params": old}, {"params": new, "lr": FASTER[levels is None] * args.learning_rate}]
    optimizer = torch.optim.AdamW(groups, args.learning_rate, weight_decay=1e-4, fused=True)
    draw = lambda generator: data.batch(BATCH, levels, generator)  # noqa: E731
    steps, losses = args.training_steps, []
    trainer = Trainer(model, adapter, draw, loss, optimizer, steps, generator, cosine(steps), max_norm=1.0)
    for step in tqdm(trainer, name, total=steps, mininterval=10, disable=True if args.quiet else None):
        losses.append(step.loss)
        if trainer.number % 100 == 0 or trainer.number == steps:
            print(f"{name}, step {trainer.number}: loss {np.mean(losses):.4f}", flush=True)
            losses.clear()
    return dict(model.unet.state_dict()) if levels is None else second.concatenated(model.unet)


def training_options(parser: argparse.ArgumentParser) -> None:
    """The options of the training, for whichever script has to do it."""
    parser.add_argument("--training-steps", type=whole(1), default=400, help="of each network, of 16 images each")
    parser.add_argument("--training-images", type=whole(1), default=3_000, help="number of different images")
    parser.add_argument("--learning-rate", type=finite, default=5e-4)


def provide(folder: Path, args: argparse.Namespace) -> dict[str, Path]:
    """The files of the three networks in a folder; those that are missing are trained."""
    files = {name: folder / f"{name}.safetensors" for name in NETWORKS}
    missing = {name: path for name, path in files.items() if not path.exists()}
    if missing:
        make_writable(folder)
        data = LowAndHigh(load(args), args.training_images, True if args.quiet else None)
    for name, path in missing.items():
        fresh = load(args)
        tensors = train(name, base_model(fresh) if name == "base" else fresh, data, args)
        write_tensors(path, {key: tensor.half() for key, tensor in tensors.items()})
        print(f"wrote {path}", flush=True)
    return files


def main() -> None:
    """Trains the networks that are not there yet."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/super-resolution")
    training_options(parser)
    args = parser.parse_args()
    provide(args.output, args)


if __name__ == "__main__":
    run(main)
