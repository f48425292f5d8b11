"""Guidance on a mixture of three Gaussians, a class each: densities and samples over the scale (`001`, Fig. 2 of CFG).

    python examples/three_gaussians.py        (seconds; writes to outputs/three_gaussians/)

The networks are formulas here, so every effect is guidance's own (arXiv 2207.12598, Fig. 2). Above the guided densities
p(x | c)^s p(x)^(1 - s), normalised, of all classes; below samples of DDIM with classifier-free guidance, which are not
quite distributed so: adding noise and multiplying densities do not commute.
"""

from support.command_line import arguments, finite, generators, make_output, run, whole

import matplotlib
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from minti.denoising import DDIM, Run
from minti.sampling import classifier_free_guidance
from minti.scheduler import NoiseScheduler, SchedulerConfig

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MEANS = torch.tensor([[0.0, 1.0], [-0.87, -0.5], [0.87, -0.5]])
STD, WIDE = 0.45, 3.0  # of a class; half the width of the plots
EVERYTHING = -1.0  # the "class" of the unconditional network


def log_density(x: Tensor, label: Tensor, a: float = 1.0) -> Tensor:
    """log p_t(x | c) of points (n, 2) and classes (n,), at alpha-bar a; for the class EVERYTHING log p_t(x): (n,)."""
    parts = Independent(Normal(a**0.5 * MEANS.to(x), (a * STD**2 + 1 - a) ** 0.5), 1)
    each = parts.log_prob(x[:, None])  # n 3
    own = each.gather(1, label.clamp(min=0).long()[:, None])[:, 0]
    mixture = MixtureSameFamily(Categorical(torch.ones(len(MEANS)).to(x)), parts).log_prob(x)
    return torch.where(label == EVERYTHING, mixture, own)


def network(scheduler: NoiseScheduler, x: Tensor, timesteps: Tensor, label: Tensor) -> Tensor:
    """The ideal network, epsilon = -sqrt(1 - alpha-bar) grad log p_t(x | c). x (n, 2, 1, 1), label (n, 1, 1)."""
    t = int(timesteps[0])
    with torch.enable_grad():
        points = x.detach().flatten(1).requires_grad_()
        values = log_density(points, label[:, 0, 0], scheduler.alphas_cumprod[t].item())
        score = torch.autograd.grad(values.sum(), points)[0]
    return scheduler.noise_from_score(score, t).view_as(x)


def guided_samples(scheduler: NoiseScheduler, label: Tensor, scale: float, steps: int, seed: int = 0) -> Tensor:
    """DDIM with classifier-free guidance for classes (n,): (n, 2)."""
    label = label.double()[:, None, None]
    predict = classifier_free_guidance(
        lambda x, t, context: network(scheduler, x, t, context), label, torch.full_like(label, EVERYTHING), scale
    )
    noise = torch.randn(len(label), 2, 1, 1, generator=generators(seed, 1)[0], dtype=torch.float64)
    *_, last = DDIM()(predict, Run(noise, scheduler, DDIM().stops(scheduler, steps)))
    return last.latents.flatten(1)


def guided_density(points: Tensor, label: int, scale: float, area: float) -> Tensor:
    """p(x | c)^s p(x)^(1 - s), normalised over points (n, 2) that stand for an area each: (n,)."""
    of = lambda which: log_density(points, torch.full((len(points),), float(which)))  # noqa: E731
    return (scale * of(label) + (1 - scale) * of(EVERYTHING)).softmax(dim=0) / area


def main() -> None:
    """The page, and how far the classes move from their means."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/three_gaussians")
    parser.add_argument("--scales", type=finite, nargs="+", default=[1, 2, 4, 8], help="guidance scales")
    parser.add_argument("--count", type=whole(3), default=900, help="samples of each scale")
    parser.add_argument("--steps", type=whole(1), default=100, help="denoising steps")
    args = parser.parse_args()
    folder = make_output(args.output)
    scheduler = NoiseScheduler(SchedulerConfig(set_alpha_to_one=True))
    line = torch.linspace(-WIDE, WIDE, 151, dtype=torch.float64)
    grid, area = torch.cartesian_prod(line, line), ((line[1] - line[0]) ** 2).item()
    label = torch.arange(args.count) % len(MEANS)
    figure, axes = plt.subplots(2, len(args.scales), figsize=(2.6 * len(args.scales), 5.2), squeeze=False)
    print("| guidance scale | distance from the middle, by the density | by samples | deviation | right class |")
    print("|---|---|---|---|---|")
    for (above, below), scale in zip(axes.T, args.scales):
        densities = [guided_density(grid, c, scale, area) for c in range(len(MEANS))]
        above.imshow(sum(densities).view(151, 151).T, origin="lower", extent=(-WIDE, WIDE) * 2, cmap="magma")
        x = guided_samples(scheduler, label, scale, args.steps, args.seed)
        below.scatter(*x.T, s=2, c=label, cmap="brg")
        below.set(xlim=(-WIDE, WIDE), ylim=(-WIDE, WIDE), aspect="equal")
        above.set(title=f"s = {scale:g}")
        apart = ((densities[0] * area)[:, None] * grid).sum(dim=0).norm()
        centres = torch.stack([x[label == c].mean(dim=0) for c in range(len(MEANS))])
        spread = (x - centres[label]).square().mean() ** 0.5
        right = (torch.cdist(x, MEANS.double()).argmin(dim=1) == label).double().mean()
        print(f"| {scale:g} | {apart:.2f} | {centres.norm(dim=1).mean():.2f} | {spread:.2f} | {100 * right:.0f} % |")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.tight_layout()
    figure.savefig(folder / "three_gaussians.png", dpi=70)
    print(f"wrote {folder}/three_gaussians.png")


if __name__ == "__main__":
    run(main)
