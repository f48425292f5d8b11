"""Samplers and steps: global errors on a Gaussian, whose exact flow is known, and the judge's accuracy on samples.

    python examples/toybox/compare_samplers.py --only flow         # a few seconds
    python examples/toybox/compare_samplers.py --only drawn        # half an hour; --samplers ddim heun: those only
    python examples/toybox/compare_samplers.py --only deep         # deep features kept, beside fewer steps
    python examples/toybox/compare_samplers.py --only lean         # all that saves time at once

flow: x_0 ~ N(1.5, 0.4^2), where the perfect network is a formula and so is where every noise ends; under the linear
schedule and the cosine. The others: a toy is right if its shape, pattern and both colours are, of prompts that name
them; prompts and noise are the same in every row. Few steps are taken by all samplers, many by those that may need
them. Prints each row as it comes; writes a .csv of each table, samplers.png, and deep.png, the first images of each
row of deep.
"""

from study import Row, Study, options
from support.command_line import generators, run, whole

import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import Tensor

import world
from measure import recognised, verdicts
from minti.denoising import DDIM, SAMPLERS, Run, make_sampler
from minti.guidance.conditions import Conditions
from minti.samplers.ode import initial_x
from minti.scheduler import NoiseScheduler, SchedulerConfig
from minti.speed.deep_cache import DeepCache

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MEAN, STD = 1.5, 0.4
SCHEDULES = {"linear": (1e-4, 0.02), "squaredcos_cap_v2": (0.0, 0.0)}  # the cosine needs neither beta
FLOW_STEPS = (5, 10, 20, 40, 50, 100)
MOST = {"ddpm": 100, "ddim": 100, "pndm": 50, "dpm-solver++": 50}  # steps that are taken; of the others 20
LEAN = [(20, 1, 0), (15, 3, 250), (12, 3, 250), (12, 2, 250), (15, 4, 250), (10, 2, 250), (10, 3, 250)]


def flow_error(name: str, n: int, schedule: str) -> float:
    """The root mean square distance of a sampler's n steps from where the exact flow ends."""
    start, end = SCHEDULES[schedule]
    config = SchedulerConfig(beta_schedule=schedule, beta_start=start, beta_end=end, set_alpha_to_one=True)
    scheduler, sampler = NoiseScheduler(config), make_sampler(name)

    def predict(x: Tensor, t: float) -> Tensor:
        # E[epsilon | x_t] = sqrt(1 - a) (x_t - sqrt(a) mean) / (a std^2 + 1 - a)
        a = scheduler.alpha_bar(t).double()
        return (1 - a) ** 0.5 * (x - a**0.5 * MEAN) / (a * STD**2 + 1 - a)

    noise = torch.randn(1, 1, 256, 1, generator=generators(0, 1)[0], dtype=torch.float64)
    run = Run(noise, scheduler, sampler.stops(scheduler, n))
    signal, rate = (number.double() for number in run.stops[0].level)
    begun = initial_x(run) if name in ("euler", "heun") else noise
    exact = MEAN + STD * (begun - signal * MEAN) / (signal**2 * STD**2 + rate**2) ** 0.5
    *_, last = sampler(predict, run)
    return (last.latents - exact).square().mean().sqrt().item()


def evaluations(name: str, n: int) -> int:
    """Calls of the network in n steps."""
    return {"pndm": n + 1, "heun": 2 * n - 1}.get(name, n)


def flow() -> Iterator[Row]:
    """Deterministic samplers x schedules, and the order of convergence from 20 steps on."""
    for schedule in SCHEDULES:
        for name in ("ddim", "euler", "heun", "pndm", "dpm-solver++"):
            errors = {n: flow_error(name, n, schedule) for n in FLOW_STEPS}
            some = {n: error for n, error in errors.items() if n >= 20}
            slope = -np.polyfit(np.log(list(some)), np.log(list(some.values())), 1)[0]
            row = {"schedule": schedule, "sampler": name} | {f"{n} steps": error for n, error in errors.items()}
            yield row | {"slope": float(slope)}


# The other tables: what a row is called, and its steps, sampler and further options.
Ways = Iterator[tuple[dict[str, object], dict[str, object]]]


def guided(study: Study, low: int) -> dict[str, object]:
    """Guidance from the noisy end down to a timestep."""
    last = study.model.scheduler.config.num_train_timesteps
    return {"cfg": Conditions(study.model, interval=(low, last))}


def drawn(study: Study) -> Ways:
    """Samplers x steps; then DDIM with noise, from 20 steps on. With eta = 1 it is DDPM, which has rows of its own."""
    args = study.args
    noisy = {f"ddim, eta {eta:g}": DDIM(eta) for eta in (0.25, 0.5, 0.75)} if "ddim" in args.samplers else {}
    ways = {name: (0, MOST.get(name, 20), make_sampler(name)) for name in args.samplers}
    ways |= {name: (20, 50, sampler) for name, sampler in noisy.items()}
    for n in args.steps:
        for name, (least, most, sampler) in ways.items():
            if least <= n <= most:
                row = {"sampler": name, "steps": n, "evaluations": evaluations(name, n)}
                yield row, {"steps": n, "sampler": sampler}


def deep(study: Study) -> Ways:
    """20 steps of DPM-Solver++ with deep features kept, and as few whole steps as cost about as much."""
    low = study.model.scheduler.config.num_train_timesteps // 4
    cut = guided(study, low)
    ways = {f"k = {k}": {"every": k} for k in (1, 2, 3, 5)}
    ways |= {f"k = {k}, branch 0": {"every": k, "branch": 0} for k in (2, 3)}
    ways |= {f"k = {k}, guided from t = {low} up": cut | {"every": k} for k in (1, 3)}
    ways |= {"k = 3, branch 0, guided so": cut | {"every": 3, "branch": 0}}
    ways |= {f"{n} steps": {"steps": n} for n in (10, 7, 5)}
    yield from (({"way": name}, {"steps": 20} | how) for name, how in ways.items())


def lean(study: Study) -> Ways:
    """Fewer steps of DPM-Solver++, deep features kept and guidance in a part of the steps, beside 20 whole steps."""
    for n, k, low in LEAN:
        yield {"steps": n, "k": k, "guided from": low}, {"steps": n, "every": k} | guided(study, low)


def rows(study: Study, name: str, ways: Ways) -> Iterator[Row]:
    """Samples of the same prompts from the same noise in every way: the share of right toys, its standard error, and
    seconds for an image; of lean also the difference from the first way."""
    rng, first, count = np.random.default_rng((study.args.seed, 41)), None, study.args.count
    toys, judge = [world.random_toy(rng) for _ in range(count)], study.judge
    prompts = [f"a photo of a {toy.looks}" for toy in toys]
    for called, how in study.bar(list(ways), name):
        begin, given = time.perf_counter(), {"sampler": "dpm-solver++", "every": 1, "branch": 2} | how
        every, branch, steps = (given.pop(key) for key in ("every", "branch", "steps"))
        with DeepCache(every, branch).attached(study.model) if every > 1 else nullcontext():
            pixels = study.sample(prompts, num_inference_steps=steps, **given)
        hits = [recognised(verdict, toy) for verdict, toy in zip(verdicts(judge, pixels), toys)]
        hits, seconds = np.array(hits, dtype=float), (time.perf_counter() - begin) / count
        right = float(hits.mean())
        row = called | {"right": right, "error": (right * (1 - right) / count) ** 0.5, "seconds": seconds}
        if name == "deep":
            study.show(name, called["way"], pixels[:4])
        if name == "lean":
            first = hits if first is None else first
            change = hits - first  # of the same toys from the same noises
            row |= {"difference": float(change.mean()), "its error": float(change.std() / count**0.5)}
        yield row


def plot(folder: Path, tables: dict[str, list[Row]]) -> None:
    """Error and accuracy over the number of evaluations, side by side."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    colours = {name: f"C{i}" for i, name in enumerate(SAMPLERS)}  # left and right the same
    for row in tables.get("flow", []):
        errors = {int(key.split()[0]): value for key, value in row.items() if key.endswith("steps")}
        if row["schedule"] == "linear":
            costs = [evaluations(row["sampler"], n) for n in errors]
            label = f"{row['sampler']}, slope {row['slope']:.1f}"
            style = "x--" if row["sampler"] == "ddim" else ".-"
            left.loglog(costs, list(errors.values()), style, color=colours[row["sampler"]], label=label)
    for name in SAMPLERS:
        if own := [row for row in tables.get("drawn", []) if row["sampler"] == name]:
            rates, errors = ([100 * row[key] for row in own] for key in ("right", "error"))
            costs = [row["evaluations"] for row in own]
            right.errorbar(costs, rates, errors, marker=".", color=colours[name], label=name)
    left.set(title="distance from the exact flow of a Gaussian", xlabel="evaluations")
    right.set(title="toys right in all four, per cent", xlabel="evaluations", xscale="log", ylim=(0, 101))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend(fontsize=7)
        else:
            axes.remove()
    figure.savefig(folder / "samplers.png", dpi=80, bbox_inches="tight")


def main() -> None:
    """The tables that are asked for, and one plot of them."""
    ways = {"drawn": drawn, "deep": deep, "lean": lean}
    tables = ("flow", *ways)
    parser = options(__doc__, "outputs/samplers", count=64, batch_size=64)
    parser.add_argument("--only", nargs="+", choices=tables, default=tables, help="which tables")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS), help="of drawn")
    parser.add_argument("--steps", type=whole(1), nargs="+", default=[5, 10, 20, 50, 100], help="of drawn")
    study = Study(parser)
    found = {}
    for name in study.args.only:
        new = flow() if name == "flow" else rows(study, name, ways[name](study))
        found[name] = study.table(name, new, columns={})
    if {"flow", "drawn"} & set(found):
        plot(study.folder, found)


if __name__ == "__main__":
    run(main)
