"""Score matching, implicit and denoising: how a network learns grad log p from samples alone (`004`, 1; `003`, 11).

    python examples/score_matching.py        (a minute; writes to outputs/score_matching/)

First in two dimensions, where the truth is known: scores.png has the true score, and that of a small network trained by
each of the losses, almost without noise and with it. Then with the toybox: its diffusion loss without knowledge of the
noise, and, by the same derivative, what the model is not yet sure of at each step: uncertainty.png.
"""

from support.command_line import arguments, generators, load, make_output, run, whole
from support.pages import page

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import torch
from PIL import Image
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

import minti
from minti.formats.image_files import open_folder, save_png
from minti.images import to_pil, to_pixels
from minti.sampling import conditional
from minti.scheduler import NoiseScheduler
from minti.utils import randn

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Function = Callable[[Tensor], Tensor]  # a score, or a predicted noise: (n, ...) -> (n, ...)
CONCEPTS = Path(__file__).parent / "concepts"
LEVELS = {"almost no noise": 0, "with noise": 300}  # timesteps
WEIGHTS, MEANS, STD = [0.5, 0.3, 0.2], [[-1.2, -0.8], [1.3, -0.5], [0.0, 1.3]], 0.15


def implicit_loss(score: Function, x: Tensor) -> Tensor:
    """Implicit score matching, tr(grad s) + 1/2 |s|^2 (Hyvarinen 2005, theorem 1; `004` 1): (n, d) -> (n,).

    By partial integration its mean over p is that of 1/2 |s - grad log p|^2, less the mean of 1/2 |grad log p|^2, which
    no s can change. The trace takes d backward passes.
    """
    x = x.detach().requires_grad_()
    s = score(x)
    rows = [torch.autograd.grad(s[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(x.shape[1])]
    return sum(rows) + s.square().sum(dim=1) / 2


def denoising_loss(
    noise_of: Function, x: Tensor, scheduler: NoiseScheduler, t: int, generator: torch.Generator
) -> Tensor:
    """Denoising score matching, E[|s(x_t) + epsilon / sqrt(1 - alpha-bar_t)|^2] / d (Vincent 2011): the diffusion loss
    of a network that predicts noise, divided by 1 - alpha-bar_t. x: clean, (n, d)."""
    unet = lambda latents, timesteps, context: noise_of(latents.flatten(1)).view_as(latents)  # noqa: E731
    model = SimpleNamespace(unet=unet, scheduler=scheduler)
    loss = minti.diffusion_loss(model, x[:, :, None, None], t, torch.empty(0), generator=generator)
    return loss / (1 - scheduler.alphas_cumprod[t])


def diagonal(f: Function, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """f(x), and Hutchinson's estimate of the diagonal of its Jacobian, v * (J v) with random signs v, whose sum is one
    of the trace; by one Jacobian-vector product. (n, ...) -> twice (n, ...)."""
    x = x.contiguous()
    v = torch.randint(2, x.shape, generator=generator).to(x) * 2 - 1
    with sdpa_kernel(SDPBackend.MATH):  # torch's fused attention has no forward derivative
        value, product = torch.func.jvp(f, (x,), (v,))
    return value, v * product


def clean_variance(
    noise_of: Function, x: Tensor, scheduler: NoiseScheduler, t: int, probes: int, generator: torch.Generator
) -> Tensor:
    """Var(x_0 | x_t) of every number of one x_t, (1, ...) -> (...), from the derivative of the predicted noise:

    Cov(x_0 | x_t) = (1 - alpha-bar) / alpha-bar (I - sqrt(1 - alpha-bar) grad epsilon)      (Tweedie's second order)
    """
    a = scheduler.alphas_cumprod[t].item()
    _, slope = diagonal(noise_of, x.expand(probes, *x.shape[1:]), generator)
    return (1 - a) / a * (1 - (1 - a) ** 0.5 * slope.mean(dim=0))


# --- two dimensions ---------------------------------------------------------------------------------------------------


def mixture(scheduler: NoiseScheduler, t: int) -> MixtureSameFamily:
    """Three Gaussians with the noise of a timestep: x_t ~ sum_k w_k N(sqrt(a) mu_k, a std^2 + 1 - a)."""
    a = scheduler.alphas_cumprod[t].item()
    parts = Independent(Normal(a**0.5 * torch.tensor(MEANS), (a * STD**2 + 1 - a) ** 0.5), 1)
    return MixtureSameFamily(Categorical(torch.tensor(WEIGHTS)), parts)


def score_of(density: torch.distributions.Distribution) -> Function:
    """grad log p."""

    def score(x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(density.log_prob(x).sum(), x)[0]

    return score


def trained(method: str, scheduler: NoiseScheduler, t: int, steps: int, bar: tqdm, seed: int = 0) -> Function:
    """The score by a small network, trained on fresh samples in every step by one of the losses."""
    generator, width = generators(seed, 1)[0], 96
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
    ).append(nn.Linear(width, 2))
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    sigma = (1 - scheduler.alphas_cumprod[t].item()) ** 0.5
    for _ in range(steps):
        chosen = torch.multinomial(torch.tensor(WEIGHTS), 256, replacement=True, generator=generator)
        clean = torch.tensor(MEANS)[chosen] + STD * torch.randn(256, 2, generator=generator)
        if method == "implicit":
            noisy = scheduler.add_noise(clean, torch.randn(256, 2, generator=generator), t)
            loss = implicit_loss(lambda x: -net(x) / sigma, noisy).mean()
        else:
            loss = denoising_loss(net, clean, scheduler, t, generator)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        bar.update()
    return lambda x: -net(x) / sigma


def in_two_dimensions(folder: Path, steps: int, quiet: bool) -> None:
    """Trains four networks; prints how far they are from the truth, and draws the scores."""
    scheduler, titles = NoiseScheduler(), ("the truth", "implicit", "denoising")
    line = torch.linspace(-2.4, 2.4, 17)
    grid = torch.cartesian_prod(line, line)
    figure, axes = plt.subplots(len(LEVELS), 3, figsize=(9, 6.2), layout="constrained", squeeze=False)
    print(
        "| | loss | squared error, in % of the truth's square, at the data | on the whole square |\n|---|---|---|---|"
    )
    with tqdm(total=4 * steps, desc="training", disable=quiet or None) as bar:
        for row, (name, t) in zip(axes, LEVELS.items()):
            torch.manual_seed(1)
            density = mixture(scheduler, t)
            x, truth = density.sample((4096,)), score_of(density)
            for axis, title in zip(row, titles):
                score = truth if title == titles[0] else trained(title, scheduler, t, steps, bar)
                with torch.no_grad():
                    at_data, on_grid = score(x), score(grid)
                    errors = [
                        100 * ((s - truth(at)).square().sum() / truth(at).square().sum()).item()
                        for s, at in ((at_data, x), (on_grid, grid))
                    ]
                if title != titles[0]:
                    bar.clear()
                    print(f"| {name} | {title} | {errors[0]:.1f} | {errors[1]:.1f} |")
                axis.scatter(*x[:400].T, s=2, color="tab:orange")
                lengths = on_grid.norm(dim=1, keepdim=True)
                axis.quiver(
                    *grid.T, *(on_grid / lengths * lengths.clamp(max=lengths.median() * 2) ** 0.5).T, width=0.004
                )
                axis.set(
                    title=f"{title}, {name}", aspect="equal", xticks=[], yticks=[], xlim=(-2.6, 2.6), ylim=(-2.6, 2.6)
                )
    figure.savefig(folder / "scores.png", dpi=75)
    plt.close(figure)


# --- the toybox -------------------------------------------------------------------------------------------------------


def noise_function(model: minti.StableDiffusion, prompt: str, t: int) -> Function:
    """The predicted noise at a timestep, whatever the network predicts."""
    context = model.encode_prompt(prompt)

    def noise_of(x: Tensor) -> Tensor:
        output = conditional(model.unet, context.expand(len(x), -1, -1))(x, t)
        return model.scheduler.clean_and_noise(output, x, t)[1]

    return noise_of


@torch.no_grad()
def losses(model: minti.StableDiffusion, images: list[Image.Image], seed: int) -> None:
    """Two estimates of one number, printed per timestep: the error of the predicted noise, and the same by implicit
    score matching, 1 + mean(epsilon_theta^2 - 2 sqrt(1 - alpha-bar) diag(grad epsilon_theta)), which knows no noise."""
    pixels = torch.stack([to_pixels(image, model.resolution) for image in images])
    latents, generator = model.scale(model.encode(pixels.to(model.device, model.dtype)).mean), generators(seed, 1)[0]
    print(f"\n| timestep, {len(images)} images | denoising: the diffusion loss | implicit |\n|---|---|---|")
    for t in (100, 300, 500, 700):
        noise = randn(latents.shape, generator, model.device, model.dtype)
        sigma = (1 - model.scheduler.alphas_cumprod[t].item()) ** 0.5
        predicted, slope = diagonal(
            noise_function(model, "", t), model.scheduler.add_noise(latents, noise, t), generator
        )
        both = (noise - predicted).square(), 1 + predicted.square() - 2 * sigma * slope
        each = [values.flatten(1).mean(dim=1) for values in both]
        print(f"| {t} | " + " | ".join(f"{one.mean():.4f} ± {one.std() / len(one) ** 0.5:.4f}" for one in each) + " |")


@torch.no_grad()
def uncertainty(model: minti.StableDiffusion, prompt: str, count: int, probes: int, seed: int, quiet: bool) -> list:
    """Rows of a page: along DDIM's trajectory the predicted image, and the deviation of the clean latents that are
    still possible, black 0 and white that of all data."""
    steps, shown = 20, (4, 6, 8, 11, 14, 17)
    timesteps, rows = model.scheduler.timesteps(steps), []
    for i in tqdm(range(count), "uncertainty", disable=quiet or None):
        generator = generators(seed + i, 1)[0]
        size = model.unet.config.sample_size
        x = randn((1, model.unet.config.in_channels, size, size), generator, model.device, model.dtype)
        how = {"sampler": "ddim", "guidance_scale": 1, "latents": x, "num_inference_steps": steps}
        states = [x, *(step.latents for step in minti.sample_steps(model, prompt, **how))]
        predicted, maps = [], []
        for k in shown:
            noise_of, t = noise_function(model, prompt, timesteps[k]), timesteps[k]
            predicted.append(model.scheduler.clean_from_noise(states[k], noise_of(states[k]), t))
            variance = clean_variance(noise_of, states[k], model.scheduler, t, probes, generator).mean(dim=0)
            maps += to_pil((2 * variance.clamp(0, 1) ** 0.5 - 1).expand(1, 3, -1, -1))
        rows += [("predicted image", to_pil(model.decode(torch.cat(predicted)))), ("not yet sure of", maps)]
    return [(f"t = {timesteps[k]}" for k in shown), rows]


def main() -> None:
    """Two dimensions first, then the model."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/score_matching")
    parser.add_argument("--prompt", default="a photo of a toy", help="of the uncertainty's images")
    parser.add_argument("--training-steps", type=whole(1), default=1500, help="of each small network")
    parser.add_argument("--num-images", type=whole(1), default=3, help="of the uncertainty")
    parser.add_argument("--probes", type=whole(1), default=64, help="random directions for each derivative's diagonal")
    args = parser.parse_args()
    folder, model = make_output(args.output), load(args)
    model.freeze()
    in_two_dimensions(folder, args.training_steps, args.quiet)
    losses(
        model, [image for one in sorted(CONCEPTS.iterdir()) if one.is_dir() for image in open_folder(one)], args.seed
    )
    headings, rows = uncertainty(model, args.prompt, args.num_images, args.probes, args.seed, args.quiet)
    save_png(page(rows, size=96, headings=list(headings)), folder / "uncertainty.png")
    print(f"\nwrote {folder}/scores.png and uncertainty.png")


if __name__ == "__main__":
    run(main)
