"""A diffusion policy guided by a value function (`003` 49): two grasps, and a mean-squared policy between them.

    python examples/guided_policy.py        (seconds; prints a table)

The actions of the expert are two Gaussians, left and right, so the ideal network is a formula. The value rises to the
right, V(a) = a. Guidance by it should sample p(a) e^{s V(a)}: exactly so with the value of noisy actions,
log E[e^{s V(a_0)} | a_t]; with V(a_t), as the notes have it, only roughly.
"""

from support.command_line import arguments, finite, generators, make_output, run, whole

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal

from minti.denoising import DDPM, Run
from minti.guidance.gradients import classifier_guidance
from minti.scheduler import NoiseScheduler

MEANS, STD = torch.tensor([-1.0, 1.0], dtype=torch.float64), 0.3
Value = Callable[[Tensor, int], Tensor]  # noisy actions (n, 1, 1, 1) at a timestep -> (n,)


def actions(a: float = 1.0, tilt: float = 0.0) -> MixtureSameFamily:
    """p(a) e^{tilt a}, normalised, with the noise of alpha-bar `a`: shares e^{tilt m}, means m + tilt std^2."""
    moved = MEANS + tilt * STD**2
    parts = Normal(a**0.5 * moved, (a * STD**2 + 1 - a) ** 0.5)
    return MixtureSameFamily(Categorical(logits=tilt * MEANS), parts)


def drawn(density: MixtureSameFamily, count: int, generator: torch.Generator) -> Tensor:
    """Samples, (count,)."""
    parts = density.component_distribution
    chosen = torch.multinomial(density.mixture_distribution.probs, count, replacement=True, generator=generator)
    noise = torch.randn(count, generator=generator, dtype=torch.float64)
    return parts.mean[chosen] + parts.stddev[chosen] * noise


def policy(scheduler: NoiseScheduler) -> Callable[[Tensor, float], Tensor]:
    """The ideal network of the expert's actions, epsilon = -sqrt(1 - alpha-bar) grad log p_t."""

    def predict(x: Tensor, t: float) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            log_p = actions(scheduler.alphas_cumprod[int(t)].item()).log_prob(x)
            return scheduler.noise_from_score(torch.autograd.grad(log_p.sum(), x)[0], int(t))

    return predict


def value(x: Tensor, t: int) -> Tensor:
    """V(a_t) = a_t, of the noisy action itself (`003` 49, 3c)."""
    return x.flatten()


def value_of_noisy(scheduler: NoiseScheduler, scale: float) -> Value:
    """log E[e^{s V(a_0)} | a_t] up to a constant: log of the tilted density over the expert's."""

    def log_ratio(x: Tensor, t: int) -> Tensor:
        a = scheduler.alphas_cumprod[t].item()
        return (actions(a, scale).log_prob(x) - actions(a).log_prob(x)).flatten()

    return log_ratio


def sampled(scheduler: NoiseScheduler, by: Value, scale: float, count: int, steps: int, seed: int = 0) -> Tensor:
    """Actions by DDPM with the value's gradient: (count,)."""
    noise = torch.randn(count, 1, 1, 1, generator=generators(seed, 1)[0], dtype=torch.float64)
    predict = classifier_guidance(scheduler, by, scale)(policy(scheduler))
    run = Run(noise, scheduler, DDPM().stops(scheduler, steps), generators(seed + 1, 1)[0])
    *_, last = DDPM()(predict, run)
    return last.latents.flatten()


def main() -> None:
    """A line for each policy: how often it grasps left, right or neither, and the mean value."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/guided_policy")
    parser.add_argument("--scales", type=finite, nargs="+", default=[0.5, 1, 2], help="of the value's gradient")
    parser.add_argument("--count", type=whole(1), default=5000, help="actions of each policy")
    parser.add_argument("--steps", type=whole(1), default=200, help="denoising steps")
    args = parser.parse_args()
    make_output(args.output)
    scheduler, how = NoiseScheduler(), (args.count, args.steps, args.seed)
    generator = generators(args.seed + 2, 1)[0]
    expert = drawn(actions(), args.count, generator)
    rows = {"mean squared error": expert.mean().expand(args.count), "diffusion": sampled(scheduler, value, 0.0, *how)}
    for s in args.scales:
        rows |= {
            f"guided by V(a_t), s = {s:g}": sampled(scheduler, value, s, *how),
            f"by log E[e^(s V) given a_t], s = {s:g}": sampled(scheduler, value_of_noisy(scheduler, s), 1.0, *how),
            f"right: p(a) e^(s V(a)), s = {s:g}": drawn(actions(tilt=s), args.count, generator),
        }
    print(
        "| policy | left, % | right, % | neither, % | mean value | deviation on the right |\n|---|---|---|---|---|---|"
    )
    for name, x in rows.items():
        grasps = [(x - mean).abs() < 3 * STD for mean in MEANS]
        shares = [100 * grasp.double().mean().item() for grasp in (*grasps, ~(grasps[0] | grasps[1]))]
        spread = x[x > 0].std() if len(x[x > 0]) > 1 else torch.tensor(0.0)
        print(f"| {name} | {' | '.join(f'{share:.0f}' for share in shares)} | {x.mean():.2f} | {spread:.2f} |")


if __name__ == "__main__":
    run(main)
