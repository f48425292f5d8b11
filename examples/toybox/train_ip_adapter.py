"""Trains the toybox's IP-Adapter: a picture of a toy becomes a prompt for that toy.

    python examples/toybox/train_ip_adapter.py --output outputs/ip-adapter

A step draws the toy of a photo into another scene. The prompt tells of that scene's style, size, place and background
what captions tell, and of the toy only that it is "a toy": the photo alone says what it looks like, and nothing else in
the photo helps. Only toys that training may show. An interrupted run goes on from --output.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from support.command_line import arguments, finite, load, make_output, run, whole

import argparse
import math
import time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

import minti
import world
from held_out import to_pixels
from loop import save_atomically
from minti.adapters.ip_adapter import IPAdapter, save_ip_adapter
from minti.images import to_pil
from minti.training import Trainer
from minti.utils import randn
from minti.vae import DiagonalGaussian
from painting import draw
from toy_clip import load_toy_clip

PROMPTS, SCENES = 8, 16  # pictures of every toy that serve as prompts, and to draw
RUN = ("steps", "batch_size", "learning_rate", "seed", "autocast")
WITHOUT_PICTURE, WITHOUT_TEXT, WITHOUT_BOTH = 0.05, 0.1, 0.05  # shares, for guidance and for a picture alone


class Batch(NamedTuple):
    """Latents and noise (b, 8, 16, 16), timesteps (b,), prompts, and what CLIP sees in the other picture, (b, 128)."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    prompts: list[str]
    seen: Tensor

    def __str__(self) -> str:
        return ", ".join(f"{prompt!r} at {t}" for prompt, t in zip(self.prompts, self.timesteps.tolist()))


def training_toys() -> list[world.Toy]:
    """All but the held-out ones."""
    return [toy for toy in world.all_toys() if toy not in world.HELD_OUT]


def photo_of(toy: world.Toy, rng: np.random.Generator) -> np.ndarray:
    """A photo of a toy anywhere, (64, 64, 3) in [0, 1]: the picture that is the prompt."""
    scene = world.random_scene(rng, toys=(toy,))
    return draw(world.Scene(scene.toys, scene.size, scene.place, scene.background, "photo"), rng)


class Pictures:
    """Every training toy's pictures: what CLIP sees in some, and the latents and scenes of others."""

    @torch.no_grad()
    def __init__(self, model: minti.StableDiffusion, source: str, quiet: bool):
        clip, self.model = load_toy_clip(model, source), model
        self.seen, self.moments, self.scenes = [], [], []
        for number, toy in enumerate(tqdm(training_toys(), "pictures", disable=True if quiet else None)):
            rng = np.random.default_rng((21, number))
            prompts = to_pixels([photo_of(toy, rng) for _ in range(PROMPTS)])
            scenes = [world.random_scene(rng, toys=(toy,)) for _ in range(SCENES)]
            self.scenes.append(scenes)
            self.seen.append(clip.images(to_pil(prompts)))
            self.moments.append(model.vae.moments(to_pixels([draw(scene, rng) for scene in scenes])).half())

    def batch(self, size: int, generator: torch.Generator) -> Batch:
        """Toys, for each a picture as prompt and a scene, its caption, and what guidance goes without."""
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
        # What is drawn is decided between 200 and 700, as in `stages`.
        timesteps = torch.randint(1000, (size,), generator=generator)
        timesteps[::2] = torch.randint(200, 700, timesteps[::2].shape, generator=generator)
        return Batch(latents, noise, timesteps, prompts, seen)


def loop_of(model: minti.StableDiffusion, adapter: IPAdapter, pictures: Pictures, args: argparse.Namespace) -> Trainer:
    """The same loop as a word's: a part, a draw, a loss."""

    def loss(model: minti.StableDiffusion, batch: Batch) -> Tensor:
        with torch.no_grad():
            context = model.encode_prompt(batch.prompts)
        # So few tokens go twice as fast by plain matrix products, as in `stages`.
        with torch.autocast(model.device.type, torch.bfloat16, enabled=args.autocast), sdpa_kernel(SDPBackend.MATH):
            prompts = adapter.prompted(context, batch.seen)
            return minti.diffusion_loss(model, batch.latents, batch.timesteps, prompts, batch.noise)

    def rate(taken: int) -> float:
        return min(1.0, (taken + 1) / (0.02 * args.steps)) * 0.5 * (1 + math.cos(math.pi * taken / args.steps))

    model.freeze()
    optimizer = torch.optim.AdamW(adapter.trainable(), lr=args.learning_rate, weight_decay=0.01)
    generator = torch.Generator().manual_seed(args.seed)
    draw = lambda generator: pictures.batch(args.batch_size, generator)  # noqa: E731
    return Trainer(model, adapter, draw, loss, optimizer, args.steps, generator, rate, max_norm=1.0)


def keep(loop: Trainer, path: Path, run: dict[str, float]) -> None:
    """Writes what an interrupted run goes on from."""
    state = {"part": loop.part.state_dict(), "optimizer": loop.optimizer.state_dict(), "number": loop.number}
    save_atomically(state | {"generator": loop.generator.get_state(), "run": run}, path)


def go_on(loop: Trainer, path: Path, run: dict[str, float]) -> None:
    """Takes up a run where it was kept. Raises ValueError: it is another run's."""
    saved = torch.load(path, weights_only=True)
    if saved["run"] != run:
        raise ValueError(f"{path} is of another run, {saved['run']}; this one is {run}. Give another --output")
    loop.part.load_state_dict(saved["part"])
    loop.optimizer.load_state_dict(saved["optimizer"])
    loop.generator.set_state(saved["generator"])
    loop.number = loop.taken = saved["number"]


def main() -> None:
    """Pictures, the loop with checkpoints, and the file."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/ip-adapter")
    parser.add_argument("--steps", type=whole(1), default=5500)
    parser.add_argument("--batch-size", type=whole(1), default=16)
    parser.add_argument("--learning-rate", type=finite, default=1e-3)
    parser.add_argument("--autocast", action=argparse.BooleanOptionalAction, default=True, help="in bfloat16")
    args = parser.parse_args()
    folder, model = make_output(args.output), load(args)
    pictures = Pictures(model, args.model, args.quiet)
    generator = torch.Generator().manual_seed(args.seed)
    adapter = IPAdapter.beside(model, pictures.seen[0].shape[1], generator)
    loop = loop_of(model, adapter, pictures, args)
    path, what = folder / "checkpoint.pt", {name: getattr(args, name) for name in RUN}
    if path.exists():
        go_on(loop, path, what)
    smooth, kept_at = None, time.monotonic()
    bar = tqdm(loop, "steps", initial=loop.number, total=loop.steps, disable=True if args.quiet else None)
    for step in bar:
        smooth = step.loss if smooth is None else 0.99 * smooth + 0.01 * step.loss
        bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
        if loop.number % 500 == 0:
            print(f"step {loop.number}: loss {smooth:.4f}", flush=True)
        if time.monotonic() - kept_at > 60 or loop.number == loop.steps:
            kept_at = time.monotonic()
            keep(loop, path, what)
    save_ip_adapter(adapter.half(), folder / "ip_adapter.safetensors")
    print(f"wrote {folder}/ip_adapter.safetensors")


if __name__ == "__main__":
    run(main)
