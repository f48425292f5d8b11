"""Small things to see, each the answer to a question of the notes (examples/questions_003.md).

    python examples/toybox/see.py schedules      # 003, 20: the same picture in the noise of three schedules
    python examples/toybox/see.py timestep       # 003, 12: the timesteps' embedding as a picture
    python examples/toybox/see.py average        # 003, 29: a running average of the weights beside the last ones
    python examples/toybox/see.py latents        # 002, 7.6: the same UNet on pixels and on latents
    python examples/toybox/see.py default        # 002, 7.6: what "a toy" is when nobody says which
    python examples/toybox/see.py zero-shot      # 003, 9: recognition by CLIP, with captions for classes

Prints numbers; what is a picture goes to the output folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from support.command_line import arguments, generators, load, make_output, run, whole
from support.pages import page

import argparse
import copy
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import minti
import painting
import world
from held_out import to_pixels
from measure import load_judge, verdicts
from minti.formats.image_files import save_png
from minti.images import to_pil
from minti.layers import timestep_embedding
from minti.scheduler import NoiseScheduler, SchedulerConfig
from minti.unet import UNet
from toy_clip import load_toy_clip


def scenes(count: int, seed: int, pairs: float = 0.0) -> tuple[list[world.Scene], Tensor]:
    """Scenes that training has not drawn, and their pixels, (count, 3, 64, 64)."""
    drawn = [world.random_scene(np.random.default_rng((seed, 11, i)), pair_rate=pairs) for i in range(count)]
    return drawn, to_pixels(
        [painting.draw(scene, np.random.default_rng((seed, 12, i))) for i, scene in enumerate(drawn)]
    )


def schedules(args: argparse.Namespace) -> None:
    """x_t = sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) noise, for three ways from alpha-bar = 1 to 0."""
    toy = world.Toy("star", "spot", "red", "yellow")
    scene = world.Scene((toy,), "big", "in the middle", "teal", "cartoon")
    pixels = to_pixels([painting.draw(scene, np.random.default_rng(args.seed))])
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(args.seed))
    columns, rows = [0, 200, 400, 600, 800, 999], []
    for name, start, end in (
        ("linear", 1e-4, 0.02),
        ("scaled_linear", 0.00085, 0.012),
        ("squaredcos_cap_v2", 1e-4, 0.02),
    ):
        scheduler = NoiseScheduler(SchedulerConfig(beta_schedule=name, beta_start=start, beta_end=end))
        left = scheduler.alphas_cumprod
        half, last = (int((left < share).nonzero()[0]) for share in (0.5, 0.01))
        print(f"{name}: half noise from t = {half}, 99 % from t = {last}; alpha-bar ends at {left[-1]:.1e}")
        rows.append((name, [to_pil(scheduler.add_noise(pixels, noise, t).clamp(-1, 1))[0] for t in columns]))
    save_png(page(rows, size=64, headings=[f"t = {t}" for t in columns]), args.output / "schedules.png")


def timestep(args: argparse.Namespace) -> None:
    """sin(t w_i), cos(t w_i), w_i = 10000^(-2i/d): fast waves tell neighbours apart, slow ones beginning from end."""
    features = timestep_embedding(torch.arange(1000), 128)  # 1000 128
    for apart in (1, 10, 100, 400):
        likeness = torch.cosine_similarity(features[:-apart], features[apart:]).mean()
        print(f"{apart} timesteps apart: cosine {likeness:.3f}")
    grey = ((features.T + 1) * 127.5).round().to(torch.uint8).numpy()  # 128 1000
    save_png(Image.fromarray(grey).resize((1000, 256), Image.Resampling.NEAREST), args.output / "timestep.png")


def average(args: argparse.Namespace) -> None:
    """theta_ema <- decay theta_ema + (1 - decay) theta: for a UNet whose learning rate stays high."""
    model = load(args)
    _, pixels = scenes(256, args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    context = model.encode_prompt("")
    with torch.no_grad():
        latents = model.scale(model.encode(pixels).mean)
    fixed = torch.randint(1000, (32,), generator=generator)
    noise = torch.randn(latents[-32:].shape, generator=generator)

    @torch.no_grad()
    def loss_of(unet: UNet) -> float:
        return minti.diffusion_loss(replace(model, unet=unet), latents[-32:], fixed, context, noise).item()

    averages = {decay: copy.deepcopy(model.unet) for decay in (0.9, 0.98)}
    model.unet.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.unet.parameters(), lr=1e-3)
    print(f"at the beginning {loss_of(model.unet):.4f}")
    for step in range(1, args.steps + 1):
        chosen = torch.randint(224, (16,), generator=generator)  # the last 32 are for the fixed loss
        steps = torch.randint(1000, (16,), generator=generator)
        minti.diffusion_loss(model, latents[chosen], steps, context, generator=generator).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for decay, unet in averages.items():
                for mean, weight in zip(unet.parameters(), model.unet.parameters()):
                    mean.lerp_(weight, 1 - decay)
        if step % max(1, args.steps // 6) == 0:
            others = ", ".join(f"average of decay {decay} {loss_of(unet):.4f}" for decay, unet in averages.items())
            print(f"step {step}: last {loss_of(model.unet):.4f}, {others}")


def latents(args: argparse.Namespace) -> None:
    """The toybox's UNet, with other first and last layers, on 64 x 64 x 3 pixels and on 16 x 16 x 8 latents."""
    model = load(args)
    channels = model.unet.config.in_channels
    shapes = {"pixels": (3, world.RESOLUTION), "latents": (channels, model.unet.config.sample_size)}
    context = model.encode_prompt("a red star")
    for name, (channels, size) in shapes.items():
        torch.manual_seed(args.seed)
        unet = UNet(replace(model.unet.config, in_channels=channels, out_channels=channels))
        x, kept, times = torch.randn(1, channels, size, size), 0, []

        def keep(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += 0 if isinstance(tensor, nn.Parameter) else tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            unet(x, torch.tensor([500]), context)
        with torch.no_grad():
            for _ in range(8):
                start = time.perf_counter()
                unet(x, torch.tensor([500]), context)
                times.append(time.perf_counter() - start)
        print(
            f"{name}: {x.numel()} numbers, {1000 * sorted(times)[4]:.0f} ms an evaluation, "
            f"{kept / 2**20:.0f} MiB kept for the backward pass"
        )


def default(args: argparse.Namespace) -> None:
    """What the judge sees in pictures of "a toy", drawn without and with guidance."""
    model, judge = load(args), load_judge(args.model)
    for scale in (1.0, args.guidance_scale):
        noises = generators(args.seed, args.count)
        batches = [noises[start : start + 32] for start in range(0, args.count, 32)]
        pixels = [
            minti.sample(
                model,
                ["a toy"] * len(batch),
                guidance_scale=scale,
                sampler="ddim",
                num_inference_steps=20,
                generator=batch,
                output="pixels",
            )
            for batch in batches
        ]
        seen = verdicts(judge, torch.cat(pixels))
        print(f"guidance scale {scale:g}, {len(seen)} pictures")
        for head in ("count", "style", "shape_0", "main_0", "background"):
            shares = Counter(verdict[head] for verdict in seen).most_common()
            print(f"  {head}: " + ", ".join(f"{name} {100 * n / len(seen):.0f} %" for name, n in shares))
        save_png(page([(f"s = {scale:g}", to_pil(pixels[0][:10]))], size=64), args.output / f"default-{scale:g}.png")


@torch.no_grad()
def zero_shot(args: argparse.Namespace) -> None:
    """A picture's class is the caption whose embedding lies nearest: no head was trained for any of them."""
    model = load(args)
    clip = load_toy_clip(model, args.model)
    drawn, pixels = scenes(args.count, args.seed)
    seen = [i for i, scene in enumerate(drawn) if scene.style not in world.COLOURLESS]
    pictures = clip.images(to_pil(pixels))  # n d
    tasks = {
        "shape": (world.SHAPES, "a photo of a {}", [scene.toys[0].shape for scene in drawn]),
        "colour": (tuple(world.COLOURS), "a photo of a {} toy", [scene.toys[0].main for scene in drawn]),
        "background": (tuple(world.BACKGROUNDS), "a photo of a toy on a {} background", [s.background for s in drawn]),
        "style": (tuple(world.STYLES), "{} a toy", [scene.style for scene in drawn]),
    }
    for task, (classes, template, truth) in tasks.items():
        names = [world.STYLES[name] if task == "style" else name for name in classes]
        nearest = (pictures @ clip.texts([template.replace("{}", name) for name in names]).T).argmax(dim=1)
        asked = seen if task in ("colour", "background") else range(len(drawn))
        right = np.mean([classes[int(nearest[i])] == truth[i] for i in asked])
        error = (right * (1 - right) / len(asked)) ** 0.5
        chance = 100 / len(classes)
        print(f"{task}: {100 * right:.0f} +- {100 * error:.0f} % of {len(asked)} pictures; by chance {chance:.0f} %")


WHAT = {
    "schedules": schedules,
    "timestep": timestep,
    "average": average,
    "latents": latents,
    "default": default,
    "zero-shot": zero_shot,
}


def main() -> None:
    """One of them."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/see")
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--steps", type=whole(1), default=36, help="of the training, for average")
    parser.add_argument("--count", type=whole(1), default=128, help="pictures, for default and zero-shot")
    args = parser.parse_args()
    make_output(args.output)
    WHAT[args.what](args)


if __name__ == "__main__":
    run(main)
