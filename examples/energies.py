"""Scores as gradients of energies, computed (exercise E4, question 1).

python examples/energies.py        (writes to outputs/energies/)

At one noise level the UNet's answer is a score, grad log p_t(x) = -grad E_t(x). A line integral of it is the
difference of two pictures' energies, and Langevin dynamics with it draws from p_t. Both are tried on a Gaussian first,
where energy and samples are known.
"""

from __future__ import annotations

from support.command_line import arguments, generators, load, make_output, run
from support.pages import page

import argparse
import math
from collections.abc import Callable, Iterator

import torch
from PIL import Image
from torch import Tensor

import minti
from minti.images import to_pil
from minti.sampling import conditional
from minti.scheduler import NoiseScheduler
from minti.utils import Generators, randn, replacing

Score = Callable[[Tensor], Tensor]  # (b, c, h, w) -> (b, c, h, w)


def gaussian_score(mean: float, std: float, scheduler: NoiseScheduler, t: int) -> Score:
    """Where x_0 ~ N(mean, std^2), x_t ~ N(sqrt(a) mean, a std^2 + 1 - a), and the score is a straight line."""
    a = scheduler.alphas_cumprod[t].item()
    return lambda x: -(x - a**0.5 * mean) / (a * std**2 + 1 - a)


def model_score(model: minti.StableDiffusion, prompt: str, t: int) -> Score:
    """The UNet's score at timestep t, with a prompt and without guidance."""
    context = model.encode_prompt(prompt)

    def score(x: Tensor) -> Tensor:
        output = conditional(model.unet, context.expand(len(x), -1, -1))(x, t)
        _, noise = model.scheduler.clean_and_noise(output, x, t)
        return model.scheduler.score_from_noise(noise, t)

    return score


@torch.no_grad()
def energy_difference(score: Score, start: Tensor, end: Tensor, points: int = 32) -> float:
    """E(end) - E(start) = -integral_0^1 score(x(u)) . (end - start) du along the straight line between them.

    By the midpoint rule, which is exact where the score is a straight line. Of a true score the path does not matter.

    Args:
        start, end: (1, c, h, w).
        points: how many scores are averaged.

    Returns:
        The difference in nats: exp of minus it is how many times as probable the end is.
    """
    u = (torch.arange(points, device=start.device, dtype=start.dtype) + 0.5) / points
    path = start + u[:, None, None, None] * (end - start)  # points c h w
    along = torch.cat([(score(part) * (end - start)).sum(dim=(1, 2, 3)) for part in path.split(8)])
    return -along.double().mean().item()


@torch.no_grad()
def langevin(
    score: Score, x: Tensor, size: float, generator: Generators = None, noise: bool = True
) -> Iterator[Tensor]:
    """Langevin dynamics, x <- x + size score(x) + sqrt(2 size) z: without end, yields (b, c, h, w) after every step.

    Its walkers end up distributed as p, to first order in `size`. Without its noise term, as the slides `004` have it,
    it is plain ascent, and all of them end on a peak.
    """
    while True:
        x = x + size * score(x)
        if noise:
            x = x + (2 * size) ** 0.5 * randn(x.shape, generator, x.device, x.dtype)
        yield x


@torch.no_grad()
def annealed_langevin(
    scores: Callable[[float], Score], x: Tensor, sigmas: list[float], steps: int, size: float, generator: Generators
) -> Tensor:
    """Langevin dynamics down a ladder of noise levels (arXiv 1907.05600, Algorithm 1; `004` 1): (b, c, h, w).

    At level sigma the score is that of the data with so much noise added, and the step size (sigma / sigma_N)^2 times
    `size`, the last level's: far from all data the first levels still say which way to go, and how much there is.
    """
    for sigma in sigmas:
        walk = langevin(scores(sigma), x, size * (sigma / sigmas[-1]) ** 2, generator)
        x = [next(walk) for _ in range(steps)][-1]
    return x


def two_modes(share: float = 0.8, apart: float = 1.0, std: float = 0.05) -> Callable[[float], Score]:
    """share N(-apart, std^2) + (1 - share) N(apart, std^2), number by number, with sigma of noise added: its score.

    grad log p = (apart tanh(apart x / v + log((1 - share) / share) / 2) - x) / v,   v = std^2 + sigma^2
    """
    tilt = 0.5 * math.log((1 - share) / share)

    def noised(sigma: float) -> Score:
        v = std**2 + sigma**2
        return lambda x: (apart * torch.tanh(apart * x / v + tilt) - x) / v

    return noised


def modes_found(steps: int = 100) -> tuple[float, float]:
    """The share of walkers that end in the larger of two modes, where 0.8 is right: unannealed, and annealed."""
    scores, begin = two_modes(), torch.randn(1, 1, 100, 100, generator=generators(5, 1)[0])
    sigmas = torch.logspace(0, -3, 10, dtype=torch.float64).tolist()  # `004` 1: from 1 to 0.001
    walk = langevin(scores(sigmas[-1]), begin, 1e-4, generators(6, 1)[0])
    plain = [next(walk) for _ in range(steps * len(sigmas))][-1]
    annealed = annealed_langevin(scores, begin, sigmas, steps, 1e-7, generators(6, 1)[0])
    return (plain < 0).float().mean().item(), (annealed < 0).float().mean().item()


def stein(score: Score, x: Tensor) -> float:
    """The mean of -x . score(x) over the numbers of x, which is 1 where x is drawn from the score's own p.

    By partial integration E[x . grad log p] = -d for any p: known also where p is not.
    """
    with torch.no_grad():
        return -(x * score(x)).mean().item()


def gaussian_world(scheduler: NoiseScheduler, t: int, steps: int, size: float) -> None:
    """Both computations where the answers are known."""
    mean, std, a = 1.5, 0.4, scheduler.alphas_cumprod[t].item()
    score, variance = gaussian_score(mean, std, scheduler, t), a * std**2 + 1 - a
    start, end = torch.randn(2, 1, 4, 8, 8, generator=generators(0, 1)[0])
    known = [((x - a**0.5 * mean) ** 2).sum().item() / (2 * variance) for x in (start, end)]
    print(f"a Gaussian, t = {t}: energy difference {energy_difference(score, start, end):.4f} by the integral,")
    print(f"  {known[1] - known[0]:.4f} by the formula")
    for noise in (True, False):
        walkers = langevin(score, torch.zeros(1, 1, 100, 100), size, generators(1, 1)[0], noise)
        x = [next(walkers) for _ in range(steps)][-1]
        print(
            f"  Langevin dynamics {'with' if noise else 'without'} noise: mean {x.mean():.3f}, variance {x.var():.3f}; "
            f"right are {a**0.5 * mean:.3f} and {variance:.3f}"
        )


def picture_energies(model: minti.StableDiffusion, prompts: list[str], latents: Tensor, t: int, points: int) -> None:
    """The difference between two pictures under each prompt, along a straight line and along a detour."""
    noise = randn(latents[:1].shape, generators(2, 1)[0], model.device, model.dtype)
    nothing = torch.zeros_like(noise)
    start, end, corner = (model.scheduler.add_noise(x, noise, t) for x in (*latents.split(1), nothing))
    print(f"\nE({prompts[1]!r}) - E({prompts[0]!r}) of the pictures in page.png, t = {t}, in nats:")
    for prompt in ("", *prompts):
        score = model_score(model, prompt, t)
        straight = energy_difference(score, start, end, points)
        detour = energy_difference(score, start, corner, points) + energy_difference(score, corner, end, points)
        print(f"  under {prompt!r}: {straight:.1f}; by a detour {detour:.1f}")


def wander(
    model: minti.StableDiffusion, prompt: str, latents: Tensor, t: int, steps: int, size: float
) -> list[tuple[str, list[Image.Image]]]:
    """Langevin dynamics at one noise level from a noised picture, with and without its noise: rows for a page."""
    noise = randn(latents.shape, generators(3, 1)[0], model.device, model.dtype)
    begin, score = model.scheduler.add_noise(latents, noise, t), model_score(model, prompt, t)
    print(f"\n{steps} Langevin steps at t = {t} under {prompt!r}; -x . score / d is 1 of what p_t itself would draw:")
    print(f"  the noised picture: {stein(score, begin):.3f}, variance {begin.var():.3f}")
    rows = []
    for with_noise in (True, False):
        walk, seen = langevin(score, begin, size, generators(4, 1)[0], with_noise), [begin]
        for step in range(1, steps + 1):
            x = next(walk)
            if step % max(1, steps // 5) == 0:
                seen.append(x)
        name = "with noise" if with_noise else "without noise, as 004 has it"
        print(f"  {name}: {stein(score, x):.3f}, variance {x.var():.3f}")
        states = torch.cat(seen)
        guesses = states + (1 - model.scheduler.alphas_cumprod[t].item()) * torch.cat([score(one) for one in seen])
        guesses = guesses / model.scheduler.alphas_cumprod[t].item() ** 0.5  # x_0 = (x + (1 - a) score) / sqrt(a)
        rows += [(name, to_pil(model.decode(states))), ("what the UNet sees in it", to_pil(model.decode(guesses)))]
    return rows


def parse() -> argparse.Namespace:
    """The command line."""
    parser = arguments("Energies and Langevin dynamics from the UNet's score.", output="outputs/energies")
    parser.add_argument("--prompts", nargs=2, default=["a red star", "a blue moon"], metavar="PROMPT")
    parser.add_argument("--timestep", type=int, default=400, help="the noise level")
    parser.add_argument("--points", type=int, default=32, help="of each line integral")
    parser.add_argument("--steps", type=int, default=200, help="of Langevin dynamics")
    parser.add_argument("--step-size", type=float, default=0.05, help="of Langevin dynamics, in noise variances")
    return parser.parse_args()


def main() -> None:
    """The Gaussian first, then the model."""
    args = parse()
    folder, model = make_output(args.output), load(args)
    size = args.step_size * (1 - model.scheduler.alphas_cumprod[args.timestep].item())
    gaussian_world(model.scheduler, args.timestep, args.steps, size)
    options = {"guidance_scale": args.guidance_scale, "generator": generators(args.seed, 2), "output": "latents"}
    latents = minti.sample(model, args.prompts, **options)
    plain, annealed = modes_found()
    print(f"two modes of shares 0.8 and 0.2: {plain:.3f} of the walkers end in the first, annealed {annealed:.3f}")
    picture_energies(model, args.prompts, latents, args.timestep, args.points)
    rows = [("the two pictures", to_pil(model.decode(latents)))]
    rows += wander(model, args.prompts[0], latents[:1], args.timestep, args.steps, size)
    with replacing(folder / "page.png") as temporary:
        page(rows).save(temporary, "png")
    print(f"\nwrote {folder}/page.png")


if __name__ == "__main__":
    run(main)
