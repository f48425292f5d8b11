"""The variational bound: nats per timestep, and the rate-distortion curve (`002`, 4.6, 5.6 and 7.5; `003`, 3 and 26).

    python examples/variational_bound.py        (a minute; writes to outputs/variational_bound/)

How many nats does each step of the chain cost, and what would an image look like if only the noisy part of the chain
were transmitted (arXiv 2006.11239, 3.4 and 4.3)? The bound is on -log of the density of the latents. The network's
error is measured at some timesteps and interpolated between them; from it and the schedule follows every term.
"""

from support.command_line import arguments, generators, load, make_output, run
from support.pages import page

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import minti
from minti.formats.image_files import open_folder, save_png
from minti.images import to_pil, to_pixels
from minti.sampling import conditional
from minti.scheduler import NoiseScheduler
from minti.utils import randn

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CONCEPTS = Path(__file__).parent / "concepts"
BANDS = (0, 1, 10, 100, 300, 500, 700, 1000)
SHOWN = (900, 700, 600, 500, 400, 200, 50, 0)
BITS = 1 / np.log(2)


def rates(scheduler: NoiseScheduler, errors: Tensor, v: float = 1.0) -> Tensor:
    """The bound's terms (DDPM, eq. 5), (T,) nats per number of x_0, by the squared errors of the predicted x_0, (T,).

        L_t = KL(q(x_{t-1} | x_t, x_0) | p(x_{t-1} | x_t)) = (r - 1 - log r) / 2 + w^2 error / (2 sigma^2)
        L_0 = -log N(x_0; predicted x_0, beta_1)

    r: the posterior's variance over sigma^2, which `v` chooses as in `NoiseScheduler.posterior`; w: x_0's weight in the
    mean. As an error of epsilon, w^2 error is the notes' beta^2 / (alpha (1 - alpha-bar)) |epsilon - epsilon_theta|^2.
    """
    terms = [0.5 * torch.log(2 * torch.pi * scheduler.betas[0]) + errors[0] / (2 * scheduler.betas[0])]
    for t in range(1, len(errors)):
        w, variance = scheduler.posterior(torch.tensor(1.0), torch.tensor(0.0), t, t - 1, v)
        r = scheduler.posterior(0.0, 0.0, t, t - 1)[1] / variance
        terms.append((r - 1 - r.log()) / 2 + w**2 * errors[t] / (2 * variance))
    return torch.stack(terms)


def prior(scheduler: NoiseScheduler, mean_square: float) -> float:
    """L_T = KL(q(x_T | x_0) | N(0, I)), nats for each number of x_0, whose mean square is given."""
    a = scheduler.alphas_cumprod[-1].item()
    return 0.5 * (a * mean_square - a - float(np.log1p(-a)))


def interpolated(timesteps: list[int], values: Tensor, count: int) -> Tensor:
    """Values at all timesteps, (count,): logarithms on straight lines between those that were measured."""
    return torch.from_numpy(np.exp(np.interp(np.arange(count), timesteps, values.log().numpy())))


class Measured(NamedTuple):
    """At some timesteps: mean squared errors of the predicted clean latents and of the predicted noise, the decoded
    image's distance in grey levels (root mean square), and the decoded first image."""

    clean: Tensor
    noise: Tensor
    distortion: Tensor
    images: list[Image.Image]


@torch.no_grad()
def measured(
    model: minti.StableDiffusion,
    pixels: Tensor,
    latents: Tensor,
    context: Tensor,
    timesteps: list[int],
    seed: int,
    quiet: bool,
) -> Measured:
    """One evaluation of all images at each timestep. pixels (n, 3, h, w), latents (n, c, h, w), context (1, m, d)."""
    found, images, generator = [], [], generators(seed, 1)[0]
    network = conditional(model.unet, context.expand(len(latents), -1, -1))
    for t in tqdm(timesteps, "timesteps", disable=True if quiet else None):
        noise = randn(latents.shape, generator, model.device, model.dtype)
        x = model.scheduler.add_noise(latents, noise, t)
        clean, predicted = model.scheduler.clean_and_noise(network(x, t), x, t)
        decoded = model.decode(clean)
        pairs = (clean, latents), (predicted, noise), (127.5 * decoded.clamp(-1, 1), 127.5 * pixels)
        found.append([(a - b).square().mean().item() for a, b in pairs])
        images += to_pil(decoded[:1])
    of_clean, of_noise, of_pixels = torch.tensor(found, dtype=torch.float64).T
    return Measured(of_clean, of_noise, of_pixels**0.5, images)


def report(scheduler: NoiseScheduler, terms: Tensor, losses: Tensor, d: int, start: float) -> None:
    """Prints how the bound and the simple loss spread over the timesteps, and the bound for other variances."""
    print(f"prior: {start:.1e} nats per number of the latents, {d} of them in an image\n")
    print("| timesteps | nats per image | share of the bound's steps | share of the simple loss |\n|---|---|---|---|")
    for low, high in pairwise(BANDS):
        name = f"{low} to {high - 1}" if high > 1 else "0, the decoder"
        part, share = terms[low:high].sum().item(), (losses[low:high].sum() / losses.sum()).item()
        steps = f"{100 * part / terms[1:].sum().item():.1f} %" if low else ""
        print(f"| {name} | {part * d:.0f} | {steps} | {100 * share:.1f} % |")


def plot(path: Path, rate: Tensor, distortion: Tensor, floor: float) -> None:
    """Distortion over rate, both linear as in DDPM's figure 5, and with a logarithmic rate."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained", sharey=True)
    for axis, scale in zip(axes, ("linear", "log")):
        axis.plot(rate, distortion, ".-")
        axis.axhline(floor, color="grey", linestyle=":", label="the autoencoder alone")
        axis.set(xscale=scale, xlabel="rate, bits per image")
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="distortion, grey levels")
    axes[1].legend()
    figure.savefig(path, dpi=75)


def main() -> None:
    """The bound of the bundled training images."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/variational_bound")
    images_help = "a folder of images; default: all bundled ones"
    parser.add_argument("--images", type=Path, help=images_help)
    parser.add_argument("--prompt", default="", help="what is known of all images beforehand")
    args = parser.parse_args()
    folder, model = make_output(args.output), load(args)
    folders = [args.images] if args.images else sorted(one for one in CONCEPTS.iterdir() if one.is_dir())
    pixels = torch.stack([to_pixels(image, model.resolution) for one in folders for image in open_folder(one)])
    pixels = pixels.to(model.device, model.dtype)
    with torch.no_grad():
        posterior = model.encode(pixels)
        floor = (
            127.5 * (model.decode(model.scale(posterior.mean)).clamp(-1, 1) - pixels)
        ).square().mean().item() ** 0.5
    latents, scheduler = model.scale(posterior.mean), model.scheduler
    count, d = scheduler.config.num_train_timesteps, latents[0].numel()
    timesteps = sorted({*np.geomspace(1, count - 1, 32).round().astype(int).tolist(), *range(0, count, count // 20)})
    found = measured(model, pixels, latents, model.encode_prompt(args.prompt), timesteps, args.seed, args.quiet)

    errors, start = interpolated(timesteps, found.clean, count), prior(scheduler, latents.square().mean().item())
    terms = rates(scheduler, errors)
    report(scheduler, terms, interpolated(timesteps, found.noise, count), d, start)
    bounds = (f"{(rates(scheduler, errors, v).sum().item() + start) * d:.0f} with v = {v:g}" for v in (0.0, 0.3, 1.0))
    print(f"\n-log p(latents) of an image is at most, in nats: {', '.join(bounds)}")

    # What has been transmitted when x_t is there: the prior and all steps above t.
    sent = BITS * d * (start + terms.flip(0).cumsum(0).flip(0) - terms)
    plot(folder / "rate_distortion.png", sent[timesteps], found.distortion, floor)
    shown = [timesteps.index(min(timesteps, key=lambda t: abs(t - wanted))) for wanted in SHOWN]
    labels = [f"{sent[timesteps[i]]:,.0f} bit" for i in shown]
    row = ("transmitted down to\nt = " + ", ".join(str(timesteps[i]) for i in shown), [found.images[i] for i in shown])
    save_png(page([row], size=96, headings=labels), folder / "page.png")
    print(f"wrote {folder}/rate_distortion.png and page.png")


if __name__ == "__main__":
    run(main)
