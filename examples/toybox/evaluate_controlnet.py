"""Measures the toybox's ControlNet on toys that no training has shown: does what is drawn keep to a drawn outline?

    python examples/toybox/evaluate_controlnet.py

Prints overlap (intersection over union), its standard deviation, and what the judge finds right, in per cent: without
and with the ControlNet, for prompts that name all of a toy's looks, and for prompts that leave out its shape. Writes
page.png: outlines, what is drawn without it, with it, and with it where no shape is named.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from support.command_line import arguments, generators, load, make_output, run, whole

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

import minti
import painting
import world
from held_out import to_pixels
from measure import TOY, load_judge, table, toy_truth, verdicts
from minti.adapters.controlnet import ControlNet
from minti.evaluation.grids import grid
from minti.formats.image_files import save_png
from minti.images import to_pil
from minti.utils import replacing
from networks import Judge
from outlines import drawn_masks, hints, masks, overlap

CONTROLNET = minti.TOYBOX / "controlnet"
COLUMNS = 8  # of the page
PROMPT = "a photo of a {main} {shape} with a {second} {pattern} on a {background} background"


class Trials:
    """Held-out toys, each at random places and sizes, which the prompt does not say: only the outline does.

    Attributes:
        wanted: the masks of what is to be drawn, (n, 1, 64, 64).
    """

    def __init__(self, count: int, seed: int = 0):
        toys = [world.HELD_OUT[i % len(world.HELD_OUT)] for i in range(count)]
        drawn = [world.random_scene(np.random.default_rng((seed, 31, i)), toys=(toy,)) for i, toy in enumerate(toys)]
        self.scenes = [replace(scene, style="photo") for scene in drawn]
        self.seed, self.seeds = seed, [(seed, 32, i) for i in range(count)]
        self.wanted = masks(self.scenes, self.seeds)

    def true_pictures(self) -> Tensor:
        """As the world itself draws them, (n, 3, 64, 64): what no drawing can surpass."""
        rngs = map(np.random.default_rng, self.seeds)
        return to_pixels([painting.draw(scene, rng) for scene, rng in zip(self.scenes, rngs)])

    def prompts(self, shape: bool = True) -> list[str]:
        """What is asked for; without `shape` each is "a toy"."""
        told = [(scene.toys[0], scene.background) for scene in self.scenes]
        looks = [vars(toy) | {"background": background} for toy, background in told]
        return [PROMPT.format_map(look if shape else look | {"shape": "toy"}) for look in looks]

    def draw(
        self, model: minti.StableDiffusion, control: ControlNet | None, prompts: Sequence[str], **options: object
    ) -> Tensor:
        """The pictures, (n, 3, 64, 64); with or without the ControlNet they begin with the same noise."""
        parts = []
        for start in range(0, len(prompts), 16):
            some = slice(start, start + 16)
            if control is not None:
                control.hint = hints(self.wanted[some])
            noise = generators(self.seed + start, len(prompts[some]))
            with control.attached(model) if control else nullcontext():
                parts.append(minti.sample(model, prompts[some], generator=noise, output="pixels", **options))
        return torch.cat(parts)

    def measure(self, judge: Judge, pixels: Tensor) -> dict[str, float]:
        """Overlap, its standard deviation over the pictures, and the share of them in which each attribute is right."""
        overlaps = overlap(drawn_masks(pixels), self.wanted)
        results = {"overlap": overlaps.mean().item(), "spread": overlaps.std().item()}
        told = [toy_truth(scene.toys[0]) | {"background": scene.background} for scene in self.scenes]
        rights = [
            {name: verdict[name] == answer for name, answer in truth.items()}
            for verdict, truth in zip(verdicts(judge, pixels), told)
        ]
        for name in told[0]:
            results[name.split("_")[0]] = sum(right[name] for right in rights) / len(rights)
        return results | {"all": sum(all(right.values()) for right in rights) / len(rights)}


def main() -> None:
    """The table."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/evaluation-controlnet")
    parser.add_argument("--controlnet", type=Path, default=CONTROLNET, help="default: the bundled one")
    parser.add_argument("--count", type=whole(2), default=48, help="pictures per row")
    parser.add_argument("--steps", type=whole(1), default=50, help="denoising steps")
    args = parser.parse_args()
    folder, model = make_output(args.output), load(args)
    control, judge = ControlNet.from_pretrained(args.controlnet, model), load_judge(args.model)
    trials = Trials(args.count, args.seed)
    rows = [("the world's own pictures", trials.measure(judge, trials.true_pictures()))]
    page = [2 * hints(trials.wanted[:COLUMNS]) - 1]
    for asked, shape in (("all looks named", True), ("shape not named", False)):
        for how, part in (("without", None), ("with the ControlNet", control)):
            pixels = trials.draw(
                model,
                part,
                trials.prompts(shape),
                num_inference_steps=args.steps,
                guidance_scale=args.guidance_scale,
            )
            rows.append((f"{asked}, {how}", trials.measure(judge, pixels)))
            page.append(pixels[:COLUMNS])
    save_png(grid(to_pil(torch.cat([*page[:3], page[4]])), columns=len(page[0])), folder / "page.png")
    print(table(rows, ("overlap", "spread", *TOY, "background", "all")))
    with replacing(folder / "measures.json") as temporary:
        temporary.write_text(json.dumps(dict(rows), indent=2) + "\n")


if __name__ == "__main__":
    run(main)
