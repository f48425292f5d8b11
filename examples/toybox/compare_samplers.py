"""Samplers and steps: errors where the exact flow is known, and what the judge says of the toybox's pictures.

    python examples/toybox/compare_samplers.py --only flow         # a few seconds
    python examples/toybox/compare_samplers.py --only drawn        # half an hour; --samplers ddim heun: those only
    python examples/toybox/compare_samplers.py --only deep         # deep features kept, beside fewer steps
    python examples/toybox/compare_samplers.py --only lean         # all that saves time at once

flow: x_0 ~ N(1.5, 0.4^2), where the perfect network is a formula and so is where every noise ends; under the linear
schedule and the cosine. The others: a toy is right if its shape, pattern and both colours are, of prompts that name
them; prompts and noise are the same in every row. Few steps are taken by all samplers, many by those that may need
them. Prints each row as it comes; writes a .csv of each table, samplers.png, and deep.png, the first pictures of each
row of deep.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from support.command_line import arguments, generators, load, make_output, run, whole
from support.pages import page
from support.studies import write_table

import time
from collections.abc import Iterator
from contextlib import nullcontext

import matplotlib
import numpy as np
import torch
from minti.diffusion.ode import beginning
from torch import Tensor
from tqdm import tqdm

import minti
import world
from measure import load_judge, recognised, verdicts
from minti.denoising import DDIM, SAMPLERS, Run, Sampler
from minti.images import to_pil
from minti.scheduler import NoiseScheduler, SchedulerConfig
from minti.speed.deep_cache import DeepCache

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MEAN, STD = 1.5, 0.4
SCHEDULES = {"linear": (1e-4, 0.02), "squaredcos_cap_v2": (0.0, 0.0)}  # the cosine needs neither beta
MOST = {"ddpm": 100, "ddim": 100, "pndm": 50, "dpm-solver++": 50}  # steps that are drawn; of the others 20
LEAN = [(15, 3, 250), (12, 3, 250), (12, 2, 250), (15, 4, 250), (10, 2, 250), (10, 3, 250)]  # steps, k, guided from
Rows = list[dict[str, object]]


def flow_error(name: str, n: int, schedule: str) -> float:
    """The root mean square distance of a sampler's n steps from where the exact flow ends."""
    start, end = SCHEDULES[schedule]
    config = SchedulerConfig(beta_schedule=schedule, beta_start=start, beta_end=end, set_alpha_to_one=True)
    scheduler, sampler = NoiseScheduler(config), SAMPLERS[name]()

    def predict(x: Tensor, t: float) -> Tensor:
        # E[epsilon | x_t] = sqrt(1 - a) (x_t - sqrt(a) mean) / (a std^2 + 1 - a)
        a = scheduler.alpha_bar(t).double()
        return (1 - a) ** 0.5 * (x - a**0.5 * MEAN) / (a * STD**2 + 1 - a)

    noise = torch.randn(1, 1, 256, 1, generator=generators(0, 1)[0], dtype=torch.float64)
    run = Run(noise, scheduler, sampler.stops(scheduler, n))
    signal, rate = (number.double() for number in run.stops[0].level)
    begun = beginning(run) if name in ("euler", "heun") else noise
    exact = MEAN + STD * (begun - signal * MEAN) / (signal**2 * STD**2 + rate**2) ** 0.5
    *_, last = sampler(predict, run)
    return (last.latents - exact).square().mean().sqrt().item()


def evaluations(name: str, n: int) -> int:
    """How often the network is asked in n steps."""
    return {"pndm": n + 1, "heun": 2 * n - 1}.get(name, n)


def flow(counts: list[int]) -> Iterator[dict]:
    """Deterministic samplers x schedules, and how steeply the error falls from 20 steps on."""
    for schedule in SCHEDULES:
        for name in ("ddim", "euler", "heun", "pndm", "dpm-solver++"):
            errors = {n: flow_error(name, n, schedule) for n in counts}
            some = {n: error for n, error in errors.items() if n >= 20}
            slope = -np.polyfit(np.log(list(some)), np.log(list(some.values())), 1)[0]
            row = {"schedule": schedule, "sampler": name} | {f"{n} steps": error for n, error in errors.items()}
            yield row | {"slope": float(slope)}


class Drawer:
    """Draws the same prompts from the same noise, each in another way, and counts how often the toy is right."""

    def __init__(self, args, model: minti.StableDiffusion):
        self.args, self.model, self.judge = args, model, load_judge(args.model)
        rng = np.random.default_rng((args.seed, 41))
        self.toys = [world.random_toy(rng) for _ in range(args.count)]

    def row(self, steps: int, sampler: str | Sampler, every: int = 1, branch: int = 2, **options: object) -> dict:
        """The share of right toys, its standard error, and seconds for a picture."""
        args, seen, begin = self.args, [], time.perf_counter()
        prompts = [f"a photo of a {toy.main} {toy.shape} with a {toy.second} {toy.pattern}" for toy in self.toys]
        with DeepCache(every, branch).attached(self.model) if every > 1 else nullcontext():
            for start in range(0, args.count, args.batch_size):
                part = prompts[start : start + args.batch_size]
                pixels = minti.sample(
                    self.model,
                    part,
                    num_inference_steps=steps,
                    sampler=sampler,
                    guidance_scale=args.guidance_scale,
                    generator=generators(args.seed + start, len(part)),
                    output="pixels",
                    **options,
                )
                seen += verdicts(self.judge, pixels)
                if start == 0:
                    self.first = to_pil(pixels[:4])
        self.hits = np.array([recognised(verdict, toy) for verdict, toy in zip(seen, self.toys)], dtype=float)
        right = float(self.hits.mean())
        seconds = (time.perf_counter() - begin) / args.count
        return {"right": right, "error": (right * (1 - right) / args.count) ** 0.5, "seconds": seconds}


def drawn(drawer: Drawer, samplers: list[str], counts: list[int]) -> Iterator[dict]:
    """Samplers x steps; then DDIM with noise, from 20 steps on. With eta = 1 it is DDPM, which has rows of its own."""
    ways = {name: SAMPLERS[name]() for name in samplers}
    if "ddim" in samplers:
        ways |= {f"ddim, eta {eta:g}": DDIM(eta) for eta in (0.25, 0.5, 0.75)}
    jobs = [(name, n) for n in counts for name in ways if n <= MOST.get(name, 20 if name in SAMPLERS else 50)]
    jobs = [(name, n) for name, n in jobs if name in SAMPLERS or n >= 20]
    for name, n in tqdm(jobs, "samplers", disable=drawer.args.quiet or None):
        yield {"sampler": name, "steps": n, "evaluations": evaluations(name, n)} | drawer.row(n, ways[name])


def deep(drawer: Drawer) -> Iterator[dict]:
    """20 steps of DPM-Solver++ with deep features kept, and as few whole steps as cost about as much."""
    t = drawer.model.scheduler.config.num_train_timesteps
    cut = {"guidance_interval": (t // 4, t)}
    ways = [(f"k = {k}", 20, {"every": k}) for k in (1, 2, 3, 5)]
    ways += [(f"k = {k}, branch 0", 20, {"every": k, "branch": 0}) for k in (2, 3)]
    ways += [(f"k = {k}, guided from t = {t // 4} up", 20, cut | {"every": k}) for k in (1, 3)]
    ways += [("k = 3, branch 0, guided so", 20, cut | {"every": 3, "branch": 0})]
    ways += [(f"{n} steps", n, {}) for n in (10, 7, 5)]
    shown = []
    for name, n, options in tqdm(ways, "deep", disable=drawer.args.quiet or None):
        yield {"way": name} | drawer.row(n, "dpm-solver++", **options)
        shown.append((name, drawer.first))
        page(shown, 64).save(drawer.args.output / "deep.png")


def lean(drawer: Drawer) -> Iterator[dict]:
    """Fewer steps of DPM-Solver++, deep features kept and guidance in a part of the steps, beside 20 whole steps."""
    t = drawer.model.scheduler.config.num_train_timesteps
    whole = None
    for n, k, low in tqdm([(20, 1, 0), *LEAN], "lean", disable=drawer.args.quiet or None):
        row = drawer.row(n, "dpm-solver++", k, guidance_interval=(low, t) if low else None)
        whole = drawer.hits if whole is None else whole
        change = drawer.hits - whole  # of the same toys from the same noises
        row |= {"difference": float(change.mean()), "its error": float(change.std() / len(change) ** 0.5)}
        yield {"steps": n, "k": k, "guided from": low} | row


def picture(folder: Path, tables: dict[str, Rows]) -> None:
    """Error and judge over the number of evaluations, side by side."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    for row in tables.get("flow", []):
        errors = {int(key.split()[0]): value for key, value in row.items() if key.endswith("steps")}
        if row["schedule"] == "linear":
            costs = [evaluations(row["sampler"], n) for n in errors]
            label = f"{row['sampler']}, slope {row['slope']:.1f}"
            left.loglog(costs, list(errors.values()), "x--" if row["sampler"] == "ddim" else ".-", label=label)
    for name in SAMPLERS:
        if own := [row for row in tables.get("drawn", []) if row["sampler"] == name]:
            rates, errors = ([100 * row[key] for row in own] for key in ("right", "error"))
            right.errorbar([row["evaluations"] for row in own], rates, errors, marker=".", label=name)
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
    """The tables that are asked for, and one picture of them."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/samplers")
    tables = ("flow", "drawn", "deep", "lean")
    parser.add_argument("--only", nargs="+", choices=tables, default=tables, help="which tables")
    parser.add_argument("--count", type=whole(1), default=64, help="pictures of each row")
    parser.add_argument("--batch-size", type=whole(1), default=64, help="pictures drawn at a time")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS), help="of drawn")
    parser.add_argument("--steps", type=whole(1), nargs="+", default=[5, 10, 20, 50, 100], help="of drawn")
    args = parser.parse_args()
    folder, found = make_output(args.output), {}
    drawer = Drawer(args, load(args)) if set(args.only) - {"flow"} else None
    ways = {"flow": lambda: flow([5, 10, 20, 40, 50, 100]), "deep": lambda: deep(drawer)}
    ways |= {"drawn": lambda: drawn(drawer, args.samplers, args.steps), "lean": lambda: lean(drawer)}
    for name in args.only:
        rows = found[name] = []
        for row in ways[name]():
            if not rows:
                print(f"| {' | '.join(row)} |\n{'|---' * len(row)}|")
            cells = (f"{x:.3g}" if isinstance(x, float) else str(x) for x in row.values())
            print(f"| {' | '.join(cells)} |", flush=True)
            rows.append(row)
            write_table(folder / f"{name}.csv", rows)
    if {"flow", "drawn"} & set(found):
        picture(folder, found)


if __name__ == "__main__":
    run(main)
