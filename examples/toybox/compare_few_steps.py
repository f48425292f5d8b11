"""Right toys over evaluations of the UNet: samplers, what saves evaluations, and distilled models, on one axis.

    python examples/toybox/compare_few_steps.py                       # everything
    python examples/toybox/compare_few_steps.py --ways student        # only the bundled LoRAs, in a few minutes

A toy is right if the judge sees its shape, its pattern and both colours; prompts name all four. Every row has the same
prompts and noise, with which no choice was made (--seed). Evaluations are of one image: a guided step takes two, and a
shallow step of DeepCache counts as the share of a whole one that its time is. Prints each row as it comes, and writes
few_steps.csv, few_steps.png and images.png, the first images of the rows.
"""

from study import Row, Study, options
from support.command_line import run, whole

import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

import minti
import world
from measure import recognised, verdicts
from minti.guidance.conditions import Conditions
from minti.samplers.few_step import LCM, TCD
from minti.speed.deep_cache import DeepCache

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FOLDER = minti.TOYBOX / "few_steps"
LORAS = {4: FOLDER / "two_steps.safetensors", 2: FOLDER / "two_steps.safetensors", 1: FOLDER / "one_step.safetensors"}
SHOWN = 8  # images of a row


def ways(study: Study) -> dict[str, list[dict[str, Any]]]:
    """Each way with its rows: options of `minti.sample`, `every` of DeepCache, and `lora`, a file."""
    cut = Conditions(study.model, interval=(250, 1000))
    found: dict[str, list[dict[str, Any]]] = {
        name: [{"sampler": name, "steps": n} for n in (2, 4, 8, 16)]
        for name in ("ddpm", "ddim", "pndm", "dpm-solver++", "heun")  # Euler's method is DDIM
    }
    found["ddim at lcm's timesteps"] = [{"sampler": TCD(gamma=0), "steps": n} for n in (2, 4, 8, 16)]
    found["dpm-solver++, guided from 250 up"] = [
        {"sampler": "dpm-solver++", "steps": n, "cfg": cut} for n in (8, 12, 16)
    ]
    found["dpm-solver++, DeepCache"] = [{"sampler": "dpm-solver++", "steps": n, "every": 3} for n in (8, 16)]
    one = {"guidance_scale": 1.0}
    found["student"] = [one | {"sampler": TCD(gamma=0), "steps": n, "lora": path} for n, path in LORAS.items()]
    found["entry"] = [one | {"sampler": TCD(gamma=0), "steps": steps, "lora": path} for steps, path in study.args.entry]
    if (path := study.args.consistency) is not None:
        found["consistency"] = [one | {"sampler": LCM(), "steps": n, "lora": path} for n in (1, 2, 4, 8)]
    return found


def shallow_cost(study: Study, every: int = 3) -> float:
    """The time of a shallow step of DeepCache, as a share of a whole one's: the least of ten."""
    times: dict[bool, list[float]] = {True: [], False: []}
    context, x = study.model.encode_prompt(["a toy"] * 16), torch.zeros(study.model.latents_shape(16))
    with torch.no_grad(), DeepCache(every).attached(study.model):
        for i in range(10 * every):
            begin = time.perf_counter()
            study.model.unet(x, torch.full((16,), 999 - i), context)
            times[i % every == 0].append(time.perf_counter() - begin)
    return min(times[False]) / min(times[True])


def rows(study: Study) -> Iterator[Row]:
    """A row for each way and number of steps."""
    args, rng = study.args, np.random.default_rng((study.args.seed, 61))
    toys = [world.random_toy(rng) for _ in range(args.count)]
    shallow = shallow_cost(study)
    for name, settings in ways(study).items():
        for how in settings if name in args.ways else ():
            given = {"every": 1, "lora": None} | how
            every, path, steps = (given.pop(key) for key in ("every", "lora", "steps"))
            some = toys if path else toys[: args.count_others]
            lora = minti.load_lora(study.model, path).merged(study.model) if path else nullcontext()
            counted: list[int] = []
            given["on_step"] = lambda step, counted=counted: counted.append(step.evaluations)
            begin = time.perf_counter()
            with lora, DeepCache(every).attached(study.model) if every > 1 else nullcontext():
                pixels = study.sample([f"a photo of a {toy.looks}" for toy in some], num_inference_steps=steps, **given)
            seconds = (time.perf_counter() - begin) / len(some)
            right = np.mean([recognised(verdict, toy) for verdict, toy in zip(verdicts(study.judge, pixels), some)])
            # Of the first batch, which is full.
            evaluations = counted[steps - 1] / min(args.batch_size, len(some))
            if every > 1:
                whole_steps = -(-steps // every)
                evaluations *= (whole_steps + shallow * (steps - whole_steps)) / steps
            study.show("images", f"{name}, {steps} steps", pixels[:SHOWN])
            row = {"way": name, "steps": steps, "evaluations": float(evaluations), "right": float(right)}
            yield row | {
                "error": float((right * (1 - right) / len(some)) ** 0.5),
                "toys": len(some),
                "seconds": seconds,
            }


def plot(folder: Path, found: list[Row]) -> None:
    """Right toys over evaluations."""
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for way in dict.fromkeys(row["way"] for row in found):
        own = sorted((row for row in found if row["way"] == way), key=lambda row: row["evaluations"])
        style = {"student": "o-", "entry": "D-", "consistency": "s-"}.get(way, "x:" if "," in way else ".--")
        values, errors = ([100 * row[key] for row in own] for key in ("right", "error"))
        axes.errorbar([row["evaluations"] for row in own], values, errors, fmt=style, label=way, capsize=2)
    axes.set(xscale="log", xlabel="evaluations of the UNet for an image", ylabel="toys right in all four, per cent")
    ticks = [1, 2, 4, 8, 16, 32]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_ylim(0, 101)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.savefig(folder / "few_steps.png", dpi=90, bbox_inches="tight")


def entry(text: str) -> tuple[int, Path]:
    """The type of an option that takes a number of steps and a LoRA."""
    steps, _, path = text.partition("=")
    return whole(1, 50)(steps), Path(path)


def main() -> None:
    """The table and the plot."""
    parser = options(__doc__, "outputs/compare-few-steps", count=(960, 1, "toys for a distilled model"), batch_size=32)
    parser.add_argument("--count-others", type=whole(1), default=128, help="toys for every other way")
    parser.add_argument("--ways", nargs="+", metavar="WAY", help="of the table's; default: all")
    parser.add_argument("--consistency", type=Path, metavar="FILE", help="a LoRA of consistency distillation, too")
    entry_help = "your own LoRA for so many unguided steps of DDIM; may be repeated (examples/challenge.md)"
    parser.add_argument("--entry", type=entry, action="append", default=[], metavar="STEPS=FILE", help=entry_help)
    parser.set_defaults(seed=900_000)
    warnings.filterwarnings("ignore", "guidance_scale")  # the teacher's sampler is guided, as DDIM
    study = Study(parser)
    study.args.steps = 1
    study.args.ways = study.args.ways or list(ways(study))
    found = study.table("few_steps", rows(study), columns={})
    plot(study.folder, found)


if __name__ == "__main__":
    run(main)
