"""Energy differences and Langevin dynamics from a diffusion model's score (exercise E4, question 1).

    python examples/energies.py        (writes to outputs/energies/)

At one noise level the UNet's prediction is a score, grad log p_t(x) = -grad E_t(x). Its line integral is the energy
difference of two images, and Langevin dynamics with it samples from p_t. Both are tested on a Gaussian first, where the
right answers are known.
"""

from support.command_line import arguments, finite, generators, load, make_output, run, whole
from support.pages import page

import math
from collections.abc import Callable, Iterator
from itertools import islice

import torch
from PIL import Image
from torch import Tensor

import minti
from minti.formats.image_files import save_png
from minti.images import to_pil
from minti.sampling import conditional
from minti.scheduler import NoiseScheduler
from minti.utils import Generators, randn

Score = Callable[[Tensor], Tensor]  # (b, c, h, w) -> (b, c, h, w)


def gaussian_score(mean: float, std: float, scheduler: NoiseScheduler, t: int) -> Score:
    """Score of noised Gaussian data: x_0 ~ N(mean, std^2), so x_t ~ N(sqrt(a) mean, a std^2 + 1 - a), a = alpha-bar."""
    a = scheduler.alphas_cumprod[t].item()
    return lambda x: -(x - a**0.5 * mean) / (a * std**2 + 1 - a)


def model_score(model: minti.StableDiffusion, prompt: str, t: int) -> Score:
    """The UNet's score at timestep t, for a prompt, without guidance."""
    context = model.encode_prompt(prompt)

    def score(x: Tensor) -> Tensor:
        output = conditional(model.unet, context.expand(len(x), -1, -1))(x, t)
        return model.scheduler.score_from_noise(model.scheduler.clean_and_noise(output, x, t)[1], t)

    return score


@torch.no_grad()
def energy_difference(score: Score, start: Tensor, end: Tensor, points: int = 32) -> float:
    """Energy difference by a line integral: E(end) - E(start) = -integral_0^1 score(x(u)) . (end - start) du.

    x(u) is the straight line from start to end, (1, c, h, w) each, and the integral a midpoint rule with `points`
    points. A true score gives the same on every path. In nats: exp(-difference) is the ratio p(end) / p(start).
    """
    u = (torch.arange(points, device=start.device, dtype=start.dtype) + 0.5) / points
    path = start + u[:, None, None, None] * (end - start)  # points c h w
    along = torch.cat([(score(part) * (end - start)).sum(dim=(1, 2, 3)) for part in path.split(8)])
    return -along.double().mean().item()


@torch.no_grad()
def langevin(
    score: Score, x: Tensor, size: float, generator: Generators = None, noise: bool = True
) -> Iterator[Tensor]:
    """Langevin dynamics, x <- x + size score(x) + sqrt(2 size) z: yields (b, c, h, w) after every step, endlessly.

    Converges to samples of p, to first order in `size`. Without its noise term, as on the slides `004`, it is gradient
    ascent and converges to a maximum of p.
    """
    while True:
        x = x + size * score(x)
        if noise:
            x = x + (2 * size) ** 0.5 * randn(x.shape, generator, x.device, x.dtype)
        yield x


def after(steps: int, walk: Iterator[Tensor]) -> Tensor:
    """The state after so many steps."""
    return next(islice(walk, steps - 1, None))


def annealed_langevin(
    scores: Callable[[float], Score], x: Tensor, sigmas: list[float], steps: int, size: float, generator: Generators
) -> Tensor:
    """Annealed Langevin dynamics over decreasing noise levels (arXiv 1907.05600, Algorithm 1; `004` 1): (b, c, h, w).

    At level sigma the score is that of data with noise of this standard deviation, and the step size is
    (sigma / sigma_N)^2 times `size`, that of the last level. High levels guide samples towards all modes.
    """
    for sigma in sigmas:
        x = after(steps, langevin(scores(sigma), x, size * (sigma / sigmas[-1]) ** 2, generator))
    return x


def two_modes(share: float = 0.8, apart: float = 1.0, std: float = 0.05) -> Callable[[float], Score]:
    """Score of a mixture, share N(-apart, std^2) + (1 - share) N(apart, std^2) per number, with noise level sigma.

    grad log p = (apart tanh(apart x / v + log((1 - share) / share) / 2) - x) / v,   v = std^2 + sigma^2
    """
    tilt = 0.5 * math.log((1 - share) / share)

    def noised(sigma: float) -> Score:
        v = std**2 + sigma**2
        return lambda x: (apart * torch.tanh(apart * x / v + tilt) - x) / v

    return noised


def modes_found(steps: int = 100) -> tuple[float, float]:
    """Fraction of samples in the larger of two modes, where 0.8 is right: without and with annealing."""
    scores, begin = two_modes(), torch.randn(1, 1, 100, 100, generator=generators(5, 1)[0])
    sigmas = torch.logspace(0, -3, 10, dtype=torch.float64).tolist()  # `004` 1: from 1 to 0.001
    plain = after(steps * len(sigmas), langevin(scores(sigmas[-1]), begin, 1e-4, generators(6, 1)[0]))
    annealed = annealed_langevin(scores, begin, sigmas, steps, 1e-7, generators(6, 1)[0])
    return (plain < 0).float().mean().item(), (annealed < 0).float().mean().item()


@torch.no_grad()
def stein(score: Score, x: Tensor) -> float:
    """Stein's identity: the mean of -x . score(x) per dimension, 1 for samples x of the score's own distribution."""
    return -(x * score(x)).mean().item()


def gaussian_world(scheduler: NoiseScheduler, t: int, steps: int, size: float) -> None:
    """Tests both on a Gaussian, and prints the results beside the right answers."""
    mean, std, a = 1.5, 0.4, scheduler.alphas_cumprod[t].item()
    score, variance = gaussian_score(mean, std, scheduler, t), a * std**2 + 1 - a
    start, end = torch.randn(2, 1, 4, 8, 8, generator=generators(0, 1)[0])
    known = [((x - a**0.5 * mean) ** 2).sum().item() / (2 * variance) for x in (start, end)]
    print(f"a Gaussian, t = {t}: energy difference {energy_difference(score, start, end):.4f} by the integral,")
    print(f"  {known[1] - known[0]:.4f} by the formula")
    for noise in (True, False):
        x = after(steps, langevin(score, torch.zeros(1, 1, 100, 100), size, generators(1, 1)[0], noise))
        print(
            f"  Langevin dynamics {'with' if noise else 'without'} noise: mean {x.mean():.3f}, variance {x.var():.3f}; "
            f"right are {a**0.5 * mean:.3f} and {variance:.3f}"
        )


def image_energies(model: minti.StableDiffusion, prompts: list[str], latents: Tensor, t: int, points: int) -> None:
    """Prints the energy difference of two images under each prompt, along a straight line and along a detour."""
    noise = randn(latents[:1].shape, generators(2, 1)[0], model.device, model.dtype)
    zero = torch.zeros_like(noise)
    start, end, corner = (model.scheduler.add_noise(x, noise, t) for x in (*latents.split(1), zero))
    print(f"\nE({prompts[1]!r}) - E({prompts[0]!r}) of the images in page.png, t = {t}, in nats:")
    for prompt in ("", *prompts):
        score = model_score(model, prompt, t)
        straight = energy_difference(score, start, end, points)
        detour = energy_difference(score, start, corner, points) + energy_difference(score, corner, end, points)
        print(f"  under {prompt!r}: {straight:.1f}; by a detour {detour:.1f}")


def wander(
    model: minti.StableDiffusion, prompt: str, latents: Tensor, t: int, steps: int, size: float
) -> list[tuple[str, list[Image.Image]]]:
    """Langevin dynamics from a noised image at one noise level, with and without its noise term: rows of a page."""
    noise = randn(latents.shape, generators(3, 1)[0], model.device, model.dtype)
    begin, score = model.scheduler.add_noise(latents, noise, t), model_score(model, prompt, t)
    a = model.scheduler.alphas_cumprod[t].item()
    print(f"\n{steps} Langevin steps at t = {t} under {prompt!r}; -x . score / d is 1 for samples of p_t:")
    print(f"  the noised image: {stein(score, begin):.3f}, variance {begin.var():.3f}")
    rows = []
    for name, with_noise in (("with noise", True), ("without noise, as 004 has it", False)):
        states = [begin, *islice(langevin(score, begin, size, generators(4, 1)[0], with_noise), steps)]
        print(f"  {name}: {stein(score, states[-1]):.3f}, variance {states[-1].var():.3f}")
        shown = states[:: max(1, steps // 5)]
        # x_0 = (x + (1 - alpha-bar) score) / sqrt(alpha-bar)
        clean = torch.cat([(x + (1 - a) * score(x)) / a**0.5 for x in shown])
        rows += [(name, to_pil(model.decode(torch.cat(shown)))), ("the UNet's x_0", to_pil(model.decode(clean)))]
    return rows


@torch.no_grad()
def main() -> None:
    """The Gaussian first, then the model."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/energies")
    parser.add_argument("--prompts", nargs=2, default=["a red star", "a blue moon"], metavar="PROMPT")
    parser.add_argument("--timestep", type=whole(0), default=400, help="noise level")
    parser.add_argument("--points", type=whole(1), default=32, help="points of each line integral")
    parser.add_argument("--steps", type=whole(1), default=200, help="steps of Langevin dynamics")
    parser.add_argument("--step-size", type=finite, default=0.05, help="of Langevin dynamics, in noise variances")
    args = parser.parse_args()
    folder, model = make_output(args.output), load(args)
    if args.timestep >= (count := model.scheduler.config.num_train_timesteps):
        raise ValueError(f"--timestep {args.timestep} is not below {count}, the model's number of timesteps")
    size = args.step_size * (1 - model.scheduler.alphas_cumprod[args.timestep].item())
    gaussian_world(model.scheduler, args.timestep, args.steps, size)
    plain, annealed = modes_found()
    print(f"two modes of shares 0.8 and 0.2: {plain:.3f} of the samples in the first, with annealing {annealed:.3f}")
    options = {"guidance_scale": args.guidance_scale, "generator": generators(args.seed, 2), "output": "latents"}
    latents = minti.sample(model, args.prompts, **options)
    image_energies(model, args.prompts, latents, args.timestep, args.points)
    rows = [("the two images", to_pil(model.decode(latents)))]
    rows += wander(model, args.prompts[0], latents[:1], args.timestep, args.steps, size)
    save_png(page(rows), folder / "page.png")
    print(f"\nwrote {folder}/page.png")


if __name__ == "__main__":
    run(main)
