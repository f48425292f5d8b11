"""Trains an IP-Adapter for the toybox: an image of a toy is the prompt for that toy.

    python examples/toybox/train_ip_adapter.py --output outputs/ip-adapter

The image prompt is a photo of a toy, and the training image shows the same toy in another scene. The text prompt is a
caption of that scene in which the toy is only "a toy", so its looks can be learned from the photo alone. Held-out toys
are never shown. An interrupted run continues from the checkpoint in --output.
"""

import examples_on_path
from support.command_line import arguments, finite, load, make_output, run, whole

import argparse
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

import minti
import world
from held_out import to_pixels
from minti.adapters.ip_adapter import IPAdapter, save_ip_adapter
from minti.images import to_pil
from minti.training import Trainer
from minti.utils import randn
from minti.vae import DiagonalGaussian
from painting import draw
from resumable import cosine, resumable
from toy_clip import load_toy_clip

PROMPTS, SCENES = 8, 16  # image prompts and training images of each toy
SETTINGS = ("steps", "batch_size", "learning_rate", "seed", "autocast")
WITHOUT_PICTURE, WITHOUT_TEXT, WITHOUT_BOTH = 0.05, 0.1, 0.05  # dropped fractions, for classifier-free guidance


class Batch(NamedTuple):
    """Latents and noise (b, 8, 16, 16), timesteps (b,), prompts, the toys' numbers, and the image prompts' CLIP
    embeddings, (b, 128)."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    prompts: list[str]
    indices: list[int]
    seen: Tensor


def training_toys() -> list[world.Toy]:
    """All toys that are not held out."""
    return [toy for toy in world.all_toys() if toy not in world.HELD_OUT]


def photo_of(toy: world.Toy, rng: np.random.Generator) -> np.ndarray:
    """An image prompt: a photo of a toy in a random scene, (64, 64, 3) in [0, 1]."""
    scene = world.random_scene(rng, toys=(toy,))
    return draw(world.Scene(scene.toys, scene.size, scene.place, scene.background, "photo"), rng)


class Pictures:
    """The data of every toy: CLIP embeddings of its image prompts, latents and scenes of its training images."""

    @torch.no_grad()
    def __init__(self, model: minti.StableDiffusion, source: str, quiet: bool):
        clip, self.model = load_toy_clip(model, source), model
        self.seen, self.moments, self.scenes = [], [], []
        for number, toy in enumerate(tqdm(training_toys(), "encoding", disable=True if quiet else None)):
            rng = np.random.default_rng((21, number))
            prompts = to_pixels([photo_of(toy, rng) for _ in range(PROMPTS)])
            scenes = [world.random_scene(rng, toys=(toy,)) for _ in range(SCENES)]
            self.scenes.append(scenes)
            self.seen.append(clip.images(to_pil(prompts)))
            gaussian = model.vae.encode(to_pixels([draw(scene, rng) for scene in scenes]))
            self.moments.append(torch.cat([gaussian.mean, gaussian.logvar], dim=1).half())

    def batch(self, size: int, generator: torch.Generator) -> Batch:
        """A batch of random toys, each with an image prompt, a scene and its caption, some of them dropped."""
        pick = lambda most: torch.randint(most, (size,), generator=generator).tolist()  # noqa: E731
        toys, pictures, scenes = pick(len(self.seen)), pick(PROMPTS), pick(SCENES)
        rng = np.random.default_rng(pick(2**31))
        prompts = [world.caption(self.scenes[i][j], rng, lambda *_: "toy") for i, j in zip(toys, scenes)]
        seen = torch.stack([self.seen[i][j] for i, j in zip(toys, pictures)])
        chance = torch.rand(size, generator=generator)
        seen[chance < WITHOUT_PICTURE + WITHOUT_BOTH] = 0
        without_text = (chance >= WITHOUT_PICTURE) & (chance < WITHOUT_PICTURE + WITHOUT_BOTH + WITHOUT_TEXT)
        prompts = ["" if without else prompt for prompt, without in zip(prompts, without_text.tolist())]
        moments = torch.stack([self.moments[i][j] for i, j in zip(toys, scenes)]).float()
        latents = self.model.scale(DiagonalGaussian.from_moments(moments).sample(generator))
        noise = randn(latents.shape, generator, latents.device, latents.dtype)
        # The content of an image is decided between 200 and 700, as in `stages`.
        timesteps = torch.randint(1000, (size,), generator=generator)
        timesteps[::2] = torch.randint(200, 700, timesteps[::2].shape, generator=generator)
        return Batch(latents, noise, timesteps, prompts, toys, seen)


def trainer_of(
    model: minti.StableDiffusion, adapter: IPAdapter, pictures: Pictures, args: argparse.Namespace
) -> Trainer:
    """The training run: the IP-Adapter, its batches and its loss."""

    def loss(model: minti.StableDiffusion, batch: Batch) -> Tensor:
        with torch.no_grad():
            context = model.encode_prompt(batch.prompts)
        # For so few tokens, plain matrix products are twice as fast, as in `stages`.
        with torch.autocast(model.device.type, torch.bfloat16, enabled=args.autocast), sdpa_kernel(SDPBackend.MATH):
            prompts = adapter.prompted(context, batch.seen)
            return minti.diffusion_loss(model, batch.latents, batch.timesteps, prompts, batch.noise)

    model.freeze()
    optimizer = torch.optim.AdamW(adapter.trainable(), lr=args.learning_rate, weight_decay=0.01)
    generator = torch.Generator().manual_seed(args.seed)
    draw = lambda generator: pictures.batch(args.batch_size, generator)  # noqa: E731
    return Trainer(model, adapter, draw, loss, optimizer, args.steps, generator, cosine(args.steps), max_norm=1.0)


def main() -> None:
    """Encodes the training data, trains with checkpoints, and saves the IP-Adapter."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/ip-adapter")
    parser.add_argument("--steps", type=whole(1), default=5500)
    parser.add_argument("--batch-size", type=whole(1), default=16)
    parser.add_argument("--learning-rate", type=finite, default=1e-3)
    parser.add_argument("--autocast", action=argparse.BooleanOptionalAction, default=True, help="use bfloat16")
    args = parser.parse_args()
    folder, model = make_output(args.output), load(args)
    pictures = Pictures(model, args.model, args.quiet)
    generator = torch.Generator().manual_seed(args.seed)
    adapter = IPAdapter.beside(model, pictures.seen[0].shape[1], generator)
    trainer = trainer_of(model, adapter, pictures, args)
    settings = {name: getattr(args, name) for name in SETTINGS}
    for smooth in resumable(trainer, folder / "checkpoint.pt", settings, quiet=True if args.quiet else None):
        if trainer.number % 500 == 0:
            print(f"step {trainer.number}: loss {smooth:.4f}", flush=True)
    save_ip_adapter(adapter.half(), folder / "ip_adapter.safetensors")
    print(f"wrote {folder}/ip_adapter.safetensors")


if __name__ == "__main__":
    run(main)
