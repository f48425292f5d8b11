"""Small experiments, each the answer to an exam question of the lecture notes (examples/questions_003.md).

    python examples/toybox/see.py schedules      # 003, 20: an image in the noise of three noise schedules
    python examples/toybox/see.py timestep       # 003, 12: the sinusoidal timestep embedding
    python examples/toybox/see.py variance       # 001, Algorithm 2: the variance of DDPM's steps, between its two ends
    python examples/toybox/see.py average        # 003, 29: a moving average (EMA) of the weights beside the last ones
    python examples/toybox/see.py latents        # 002, 7.6: the same UNet on pixels and on latents
    python examples/toybox/see.py default        # 002, 7.6: attributes of samples of "a toy", which names none
    python examples/toybox/see.py zero-shot      # 003, 9: zero-shot classification by CLIP

Prints numbers, and writes images to the output folder.
"""

from study import sample
from support.command_line import arguments, generators, load, make_output, run, whole
from support.pages import page

import argparse
import time
from collections import Counter
from dataclasses import replace

import matplotlib
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import minti
import painting
import world
from held_out import painted, random_scenes, to_pixels
from measure import load_judge, verdicts
from minti.denoising import DDPM, Run
from minti.formats.image_files import save_png
from minti.images import to_pil
from minti.layers import timestep_embedding
from minti.scheduler import NoiseScheduler, SchedulerConfig
from minti.unet import UNet
from toy_clip import load_toy_clip

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def scenes(count: int, seed: int) -> tuple[list[world.Scene], Tensor]:
    """Scenes of one toy, none of them a training scene, and their pixels, (count, 3, 64, 64)."""
    drawn = random_scenes(count, seed, 11, pair_rate=0)
    return drawn, painted(drawn, seed, 12)


def schedules(args: argparse.Namespace) -> None:
    """x_t = sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) noise, for three noise schedules."""
    toy = world.Toy("star", "spot", "red", "yellow")
    scene = world.Scene((toy,), "big", "in the middle", "teal", "cartoon")
    pixels = to_pixels([painting.draw(scene, np.random.default_rng(args.seed))])
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(args.seed))
    columns, rows = [0, 200, 400, 600, 800, 999], []
    betas = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012), "squaredcos_cap_v2": (1e-4, 0.02)}
    for name, (start, end) in betas.items():
        scheduler = NoiseScheduler(SchedulerConfig(beta_schedule=name, beta_start=start, beta_end=end))
        signal = scheduler.alphas_cumprod
        half, last = (int((signal < share).nonzero()[0]) for share in (0.5, 0.01))
        print(f"{name}: half noise from t = {half}, 99 % from t = {last}; alpha-bar ends at {signal[-1]:.1e}")
        rows.append((name, [to_pil(scheduler.add_noise(pixels, noise, t).clamp(-1, 1))[0] for t in columns]))
    save_png(page(rows, size=64, headings=[f"t = {t}" for t in columns]), args.output / "schedules.png")


def timestep(args: argparse.Namespace) -> None:
    """The timestep embedding, sin(t w_i) and cos(t w_i) with w_i = 10000^(-2i/d), and its cosine similarities."""
    features = timestep_embedding(torch.arange(1000), 128)  # 1000 128
    for apart in (1, 10, 100, 400):
        similarity = torch.cosine_similarity(features[:-apart], features[apart:]).mean()
        print(f"{apart} timesteps apart: cosine {similarity:.3f}")
    figure, axes = plt.subplots(figsize=(10, 3), layout="constrained")
    axes.imshow(features.T, cmap="gray", aspect="auto", interpolation="nearest")
    axes.set(xlabel="timestep", ylabel="feature")
    figure.savefig(args.output / "timestep.png")


def variance(args: argparse.Namespace) -> None:
    """DDPM's variance posterior^(1 - v) beta^v: of Gaussian data, where the network is a formula; and images."""
    scheduler, values = NoiseScheduler(), (0.0, 0.3, 1.0)
    noise = torch.randn(1, 1, 50_000, 1, generator=generators(args.seed, 1)[0], dtype=torch.float64)
    print("| standard deviation of the data | " + " | ".join(f"v = {v:g}" for v in values) + " |")
    print("|---" * (1 + len(values)) + "|")
    for std in (0.1, 0.4, 1.0):

        def predict(x: Tensor, t: float, std: float = std) -> Tensor:
            a = scheduler.alpha_bar(t).double()
            return (1 - a) ** 0.5 * x / (a * std**2 + 1 - a)  # E[epsilon | x_t]

        found = []
        for v in values:
            sampler = DDPM(v)
            begin = Run(noise, scheduler, sampler.stops(scheduler, 10), generators(args.seed + 1, 1)[0])
            *_, last = sampler(predict, begin)
            found.append(f"{last.latents.std():.3f}")
        print(f"| {std:g} | {' | '.join(found)} |")
    model, rows = load(args), []
    for v in values:
        how = {"sampler": DDPM(v), "num_inference_steps": 10}
        rows.append((f"v = {v:g}", to_pil(sample(model, ["a photo of a toy"] * 8, args.seed, **how))))
    save_png(page(rows, size=64), args.output / "variance.png")


def average(args: argparse.Namespace) -> None:
    """EMA of the weights, theta_ema <- decay theta_ema + (1 - decay) theta, while a UNet trains at a high rate."""
    model = load(args)
    _, pixels = scenes(256, args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    context = model.encode_prompt("")
    with torch.no_grad():
        latents = model.scale(model.encode(pixels).mean)
    fixed = torch.randint(1000, (32,), generator=generator)
    noise = torch.randn(latents[-32:].shape, generator=generator)

    @torch.no_grad()
    def loss_of(unet: nn.Module) -> float:
        return minti.diffusion_loss(replace(model, unet=unet), latents[-32:], fixed, context, noise).item()

    averages = {decay: AveragedModel(model.unet, multi_avg_fn=get_ema_multi_avg_fn(decay)) for decay in (0.9, 0.98)}
    for one in averages.values():
        one.update_parameters(model.unet)  # the first update copies the weights
    model.unet.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.unet.parameters(), lr=1e-3)
    print(f"at the beginning {loss_of(model.unet):.4f}")
    for step in range(1, args.steps + 1):
        chosen = torch.randint(224, (16,), generator=generator)  # the last 32 are the validation set
        timesteps = torch.randint(1000, (16,), generator=generator)
        minti.diffusion_loss(model, latents[chosen], timesteps, context, generator=generator).backward()
        optimizer.step()
        optimizer.zero_grad()
        for one in averages.values():
            one.update_parameters(model.unet)
        if step % max(1, args.steps // 6) == 0:
            others = ", ".join(f"average of decay {decay} {loss_of(one.module):.4f}" for decay, one in averages.items())
            print(f"step {step}: last {loss_of(model.unet):.4f}, {others}")


def latents(args: argparse.Namespace) -> None:
    """Time and memory of the toybox's UNet, with other first and last layers, on pixels and on latents."""
    model = load(args)
    config = model.unet.config
    shapes = {"pixels": (3, world.RESOLUTION), "latents": (config.in_channels, config.sample_size)}
    context, t = model.encode_prompt("a red star"), torch.tensor([500])
    for name, (channels, size) in shapes.items():
        torch.manual_seed(args.seed)
        unet = UNet(replace(config, in_channels=channels, out_channels=channels))
        x, saved, times = torch.randn(1, channels, size, size), [], []

        def save(tensor: Tensor, saved: list[int] = saved) -> Tensor:
            saved.append(0 if isinstance(tensor, nn.Parameter) else tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            unet(x, t, context)
        with torch.no_grad():
            for _ in range(8):
                start = time.perf_counter()
                unet(x, t, context)
                times.append(time.perf_counter() - start)
        print(
            f"{name}: {x.numel()} numbers, {1000 * sorted(times)[4]:.0f} ms an evaluation, "
            f"{sum(saved) / 2**20:.0f} MiB kept for the backward pass"
        )


def default(args: argparse.Namespace) -> None:
    """The judge's classes of samples of "a toy", without and with guidance."""
    model, judge = load(args), load_judge(args.model)
    for scale in (1.0, args.guidance_scale):
        how = {"guidance_scale": scale, "sampler": "ddim", "num_inference_steps": 20}
        pixels = sample(model, ["a toy"] * args.count, args.seed, 32, **how)
        classes = verdicts(judge, pixels)
        print(f"guidance scale {scale:g}, {len(classes)} images")
        for head in ("count", "style", "shape_0", "main_0", "background"):
            shares = Counter(one[head] for one in classes).most_common()
            print(f"  {head}: " + ", ".join(f"{name} {100 * n / len(classes):.0f} %" for name, n in shares))
        save_png(page([(f"s = {scale:g}", to_pil(pixels[:10]))], size=64), args.output / f"default-{scale:g}.png")


@torch.no_grad()
def zero_shot(args: argparse.Namespace) -> None:
    """Zero-shot classification: the class whose caption has the nearest CLIP embedding; no head was trained for it."""
    clip = load_toy_clip(load(args), args.model)
    drawn, pixels = scenes(args.count, args.seed)
    coloured = [i for i, scene in enumerate(drawn) if scene.style not in world.COLOURLESS]
    images = clip.images(to_pil(pixels))  # n d
    tasks = {  # {class: caption}, and the true classes
        "shape": ({name: f"a photo of a {name}" for name in world.SHAPES}, [s.toys[0].shape for s in drawn]),
        "colour": ({name: f"a photo of a {name} toy" for name in world.COLOURS}, [s.toys[0].main for s in drawn]),
        "background": (
            {name: f"a photo of a toy on a {name} background" for name in world.BACKGROUNDS},
            [s.background for s in drawn],
        ),
        "style": ({name: f"{words} a toy" for name, words in world.STYLES.items()}, [s.style for s in drawn]),
    }
    for task, (captions, truth) in tasks.items():
        nearest = (images @ clip.texts(list(captions.values())).T).argmax(dim=1)
        asked = coloured if task in ("colour", "background") else range(len(drawn))
        right = np.mean([list(captions)[nearest[i]] == truth[i] for i in asked])
        error, chance = (right * (1 - right) / len(asked)) ** 0.5, 100 / len(captions)
        print(f"{task}: {100 * right:.0f} +- {100 * error:.0f} % of {len(asked)} images; by chance {chance:.0f} %")


WHAT = {
    "schedules": schedules,
    "timestep": timestep,
    "variance": variance,
    "average": average,
    "latents": latents,
    "default": default,
    "zero-shot": zero_shot,
}


def main() -> None:
    """Runs one of the experiments."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/see")
    parser.add_argument("what", choices=WHAT, help="the experiment")
    parser.add_argument("--steps", type=whole(1), default=36, help="training steps of average")
    parser.add_argument("--count", type=whole(1), default=128, help="images of default and zero-shot")
    args = parser.parse_args()
    make_output(args.output)
    WHAT[args.what](args)


if __name__ == "__main__":
    run(main)
