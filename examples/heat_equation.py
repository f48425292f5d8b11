"""A PDE solved by diffusion from sparse observations (DiffusionPDE, `001`; arXiv 2406.17763): the heat equation.

    python examples/heat_equation.py        (seconds; writes to outputs/heat_equation/)

An initial temperature a and the final one u, du/dt = D d^2u/dx^2 on a ring, are sampled together, guided by a few
measured values of u and by the equation. The fields are Gaussian, so the ideal network is a formula, and so is the
answer: kriging, the mean of the posterior.
"""

from support.command_line import arguments, finite, generators, make_output, run, whole

from typing import NamedTuple

import matplotlib
import torch
from torch import Tensor

from minti.denoising import DDIM, Run
from minti.guidance.gradients import Guidance, classifier_guidance, universal_guidance
from minti.scheduler import NoiseScheduler, SchedulerConfig

matplotlib.use("Agg")
import matplotlib.pyplot as plt

N, DIFFUSED, LENGTH = 32, 0.004, 0.1  # points of the ring; D t; correlation length of the initial field
ERROR, NOISE = 0.3, 0.02  # what the model does not know of the equation; of a measurement and of the equation


def eye(n: int) -> Tensor:
    """The unit matrix."""
    return torch.eye(n, dtype=torch.float64)


class Problem(NamedTuple):
    """x = (a, u), (2 N,): its covariance in the model; what is measured, H x = y + noise; and the truth."""

    covariance: Tensor
    h: Tensor
    y: Tensor
    truth: Tensor


def problem(measured: int, equation: bool, seed: int = 0) -> Problem:
    """A random field, its solution u = G a, and `measured` values of u; with the `equation` also u - G a = 0.

    The model's covariance has G, but with an error of its own: it has learned the equation only roughly."""
    x = torch.arange(N, dtype=torch.float64) / N
    apart = torch.sin(torch.pi * (x[:, None] - x)) / torch.pi  # on the ring
    k = torch.exp(-((apart / LENGTH) ** 2) / 2) + 1e-6 * eye(N)
    modes = torch.fft.fftfreq(N, 1 / N, dtype=torch.float64) * 2 * torch.pi
    decay = torch.exp(-(modes**2) * DIFFUSED)  # of each mode: the heat equation's solution
    g = torch.fft.ifft(torch.fft.fft(eye(N), dim=0) * decay[:, None], dim=0).real
    covariance = torch.cat([torch.cat([k, k @ g.T], 1), torch.cat([g @ k, g @ k @ g.T], 1)])
    covariance[N:, N:] += ERROR**2 * eye(N)
    generator = generators(seed, 1)[0]
    a = torch.linalg.cholesky(k) @ torch.randn(N, generator=generator, dtype=torch.float64)
    truth, unit = torch.cat([a, g @ a]), eye(2 * N)
    where = torch.randperm(N, generator=generator)[:measured]
    h, y = unit[N + where], truth[N + where]
    if equation:
        h, y = torch.cat([h, torch.cat([-g, eye(N)], dim=1)]), torch.cat([y, torch.zeros(N, dtype=torch.float64)])
    return Problem(covariance, h, y, truth)


def kriging(p: Problem) -> tuple[Tensor, Tensor]:
    """Mean and covariance of p(x | y), with S = H C H^T + noise: C H^T S^-1 y and C - C H^T S^-1 H C."""
    gain = torch.linalg.solve(p.h @ p.covariance @ p.h.T + NOISE**2 * eye(len(p.h)), p.h @ p.covariance).T
    return gain @ p.y, p.covariance - gain @ p.h @ p.covariance


def clean(p: Problem, a: float, x: Tensor) -> Tensor:
    """E[x_0 | x_t] = sqrt(a) C (a C + (1 - a) I)^-1 x_t of (b, 2, 1, N), at alpha-bar a."""
    matrix = a * p.covariance + (1 - a) * eye(2 * N)
    return a**0.5 * torch.linalg.solve(matrix, x.flatten(1).T).T @ p.covariance


def guidance(scheduler: NoiseScheduler, p: Problem, exact: bool, scale: float = 1.0) -> Guidance:
    """By |H x_0(x_t) - y|^2 / (2 noise^2), as in the paper; or exactly, by log p(y | x_t), whose covariance is the
    noise's and that of what x_t leaves open, H Cov(x_0 | x_t) H^T."""

    def log_probability(x: Tensor, t: int) -> Tensor:
        a = scheduler.alphas_cumprod[t].item()
        left = p.covariance - clean(p, a, (a**0.5 * p.covariance).view(2 * N, 2, 1, N))
        open_ = p.h @ left @ p.h.T + NOISE**2 * eye(len(p.h))
        error = clean(p, a, x) @ p.h.T - p.y  # b m
        return -(error * torch.linalg.solve(open_, error.T).T).sum(dim=1) / 2

    def loss(x_0: Tensor) -> Tensor:
        return ((x_0.flatten(1) @ p.h.T - p.y) ** 2).sum(dim=1) / 2

    if exact:
        return classifier_guidance(scheduler, log_probability, 1.0)
    return universal_guidance(scheduler, loss, scale)


def solved(p: Problem, exact: bool, count: int, steps: int, seed: int = 0, scale: float = 20.0) -> Tensor:
    """Samples of (a, u), (count, 2 N), by DDIM."""
    scheduler = NoiseScheduler(SchedulerConfig(set_alpha_to_one=True))

    def predict(x: Tensor, t: float) -> Tensor:
        x_0 = clean(p, scheduler.alphas_cumprod[int(t)].item(), x).view_as(x)
        return scheduler.noise_from_clean(x, x_0, int(t))

    noise = torch.randn(count, 2, 1, N, generator=generators(seed, 1)[0], dtype=torch.float64)
    run = Run(noise, scheduler, DDIM().stops(scheduler, steps))
    *_, last = DDIM()(guidance(scheduler, p, exact, scale)(predict), run)
    return last.latents.flatten(1)


def main() -> None:
    """Errors of both guidances and of kriging, and a plot of the last."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/heat_equation")
    parser.add_argument("--measured", type=whole(1, N), default=8, help=f"values of u, of {N}")
    parser.add_argument("--count", type=whole(2), default=64, help="samples")
    parser.add_argument("--scale", type=finite, default=20.0, help="of universal guidance")
    parser.add_argument("--steps", type=whole(1), default=100, help="denoising steps")
    args = parser.parse_args()
    folder = make_output(args.output)
    figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained", sharey=True)
    print("| mean of the samples | error of a, % | of u | distance from kriging, % | deviation, kriging's is 1 |")
    print("|---|---|---|---|---|")
    for equation in (False, True):
        p = problem(args.measured, equation, args.seed)
        mean, covariance = kriging(p)
        ways = {"kriging": None, "universal guidance": False, "exact guidance": True}
        for name, exact in ways.items():
            x = mean[None] if exact is None else solved(p, exact, args.count, args.steps, args.seed, args.scale)
            parts = [
                (x.mean(dim=0) - p.truth)[part].norm() / p.truth[part].norm() for part in (slice(N), slice(N, None))
            ]
            far = (x.mean(dim=0) - mean).norm() / mean.norm()
            spread = 1.0 if exact is None else (x.var(dim=0).sum() / covariance.trace()).sqrt()
            told = "measurements and equation" if equation else "measurements"
            numbers = " | ".join(f"{100 * value:.0f}" for value in (*parts, far))
            print(f"| {told}: {name} | {numbers} | {spread:.2f} |")
    for axis, name, part in zip(axes, ("a, at the beginning", "u, later"), (slice(N), slice(N, None))):
        axis.plot(x[:20, part].T, color="tab:blue", alpha=0.25, linewidth=0.8)
        axis.plot(p.truth[part], color="black", label="truth")
        axis.plot(mean[part], color="tab:orange", linestyle="--", label="kriging")
        axis.set(title=name, xticks=[])
    seen = p.h[: args.measured, N:].argmax(dim=1)
    axes[1].plot(seen, p.y[: args.measured], "ko", label="measured")
    axes[1].legend(fontsize=8)
    figure.savefig(folder / "heat_equation.png", dpi=70)
    print(f"wrote {folder}/heat_equation.png")


if __name__ == "__main__":
    run(main)
