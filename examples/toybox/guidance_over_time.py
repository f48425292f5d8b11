"""Classifier-free guidance strong early or late, falling or rising, at the same mean scale.

    python examples/toybox/guidance_over_time.py

The lecture notes (`002` 6.8, misconception 4) want guidance strong at first, where there is much noise, and weak at the
end, "to preserve detail". Prompts name all of their toys; the judge says how often the toys are right, and what else is
asked for. Chroma is the mean of max - min of the three channels, in per cent; clipped are values beyond white or black.
The last columns compare the set with true images, as in `compare_sets.py`.
"""

from study import Row, Study, mean_and_error, options
from support.command_line import run

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import world
from compare_sets import compare
from held_out import painted, random_scenes
from measure import tally
from minti.denoising import make_sampler
from minti.guidance.conditions import Conditions
from minti.images import to_pil

SHARES = ("right", "more than constant", "obeyed", "chroma", "clipped")
COLUMNS = {"way": ""} | dict.fromkeys(SHARES, ".1%") | dict.fromkeys(("toybox FID", "toybox KID"), ".3f")
COLUMNS |= dict.fromkeys(("precision", "recall"), ".2f")


def schedules(timesteps: Sequence[int], scale: float) -> dict[str, dict[str, Any]]:
    """{way: `guidance_scale` and `interval`}: but for the first and last, the mean over the timesteps is `scale`.

    Where an interval ends, the scale is 1: no guidance, and one evaluation of the UNet instead of two.
    """
    first, last = max(timesteps), min(timesteps)
    middle, most = (first + last) / 2, 2 * scale - 1
    early, late = ([t for t in timesteps if (t > middle) == above] for above in (True, False))
    return {
        "constant": {"guidance_scale": scale},
        **{
            name: {"guidance_scale": 1 + (scale - 1) * len(timesteps) / len(half), "interval": (min(half), max(half))}
            for name, half in (("early half", early), ("late half", late))
        },
        "falling": {"guidance_scale": lambda t: 1 + (most - 1) * (t - last) / (first - last)},
        "rising": {"guidance_scale": lambda t: 1 + (most - 1) * (first - t) / (first - last)},
        "none": {"guidance_scale": 1},
        "constant, the most": {"guidance_scale": most},
    }


def measured(study: Study, scenes: Sequence[world.Scene], captions: Sequence[str], pixels: Tensor) -> dict[str, list]:
    """Of each image: whether its toys are right, and all else that the prompt names; chroma; the share clipped."""
    asked, toys = [], []
    for i, (scene, caption) in enumerate(zip(scenes, captions)):
        said, *each = tally(study.judge, pixels[i : i + 1], caption, scene.toys)
        asked.append(float(said["all"]))
        toys.append(float(all(toy["all"] for toy in each)))
    clamped = (pixels.clamp(-1, 1) + 1) / 2
    chroma = (clamped.amax(dim=1) - clamped.amin(dim=1)).mean(dim=(1, 2))
    clipped = (pixels.abs() > 1).float().mean(dim=(1, 2, 3))
    return {"right": toys, "obeyed": asked, "chroma": chroma.tolist(), "clipped": clipped.tolist()}


def rows(study: Study) -> Iterator[Row]:
    """True images, then one row for each way; all ways draw the same captions from the same noise."""
    args, model = study.args, study.model
    real = study.clip.images(to_pil(painted(random_scenes(args.count, args.seed, 31), args.seed, 32)))
    scenes = random_scenes(args.count, args.seed + 1, 31)
    generators = [np.random.default_rng((args.seed + 1, 33, i)) for i in range(args.count)]
    captions = [world.caption(*both, describe=lambda toy, rng: toy.looks) for both in zip(scenes, generators)]
    base: list[float] = []

    def row(way: str, pixels: Tensor) -> Row:
        found = measured(study, scenes, captions, pixels)
        base[:] = base or (found["right"] if way == "constant" else [])
        means = {name: mean_and_error(values) for name, values in found.items()}
        if base:
            means["more than constant"] = mean_and_error([a - b for a, b in zip(found["right"], base)])
        study.show("guidance_over_time", way, pixels[:8])
        return {"way": way} | means | compare(real, study.clip.images(to_pil(pixels)))

    yield row("other true images", painted(scenes, args.seed + 1, 32))
    *stops, _ = make_sampler(args.sampler).stops(model.scheduler, args.steps)  # the last is the clean image
    scale = args.guidance_scale or model.defaults.guidance_scale
    for way, how in study.bar(schedules([stop.timestep for stop in stops], scale).items(), "ways"):
        if way in args.ways:
            cfg = {"cfg": Conditions(model, interval=how["interval"])} if "interval" in how else {}
            yield row(way, study.sample(captions, guidance_scale=how["guidance_scale"], **cfg))


@torch.no_grad()
def main() -> None:
    """The table and the page."""
    parser = options(__doc__, "outputs/guidance_over_time", schedules((0, 999), 5), count=256, steps=20, batch_size=32)
    parser.set_defaults(sampler="ddim")
    study = Study(parser)
    study.table("guidance_over_time", rows(study), COLUMNS)


if __name__ == "__main__":
    run(main)
