"""Evaluates the toybox's ControlNet on toys that training never shows: do samples keep to a given outline?

    python examples/toybox/evaluate_controlnet.py

Prints overlap (intersection over union), its standard deviation, and the judge's accuracies, in per cent: without
and with the ControlNet, for prompts that name all of a toy's looks, and for prompts that leave out its shape. Writes
page.png: outlines, samples without it, with it, and with it where no shape is named.
"""

from study import Study, accuracies, options, sample
from support.command_line import run

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import minti
import world
from data import write_json
from held_out import painted
from measure import TOY, rates, toy_truth, verdicts
from minti.adapters.controlnet import ControlNet
from minti.evaluation.grids import grid
from minti.formats.image_files import save_png
from minti.images import to_pil
from networks import Judge
from outlines import drawn_masks, hints, masks, overlap

CONTROLNET = minti.TOYBOX / "controlnet"
COLUMNS = 8  # of the page
PROMPT = "a photo of a {main} {shape} with a {second} {pattern} on a {background} background"


class Trials:
    """Held-out toys, each at random places and sizes, which the prompt does not say: only the outline does.
    `wanted`: the masks of the toys, (n, 1, 64, 64)."""

    def __init__(self, count: int, seed: int = 0):
        toys = [world.HELD_OUT[i % len(world.HELD_OUT)] for i in range(count)]
        drawn = [world.random_scene(np.random.default_rng((seed, 31, i)), toys=(toy,)) for i, toy in enumerate(toys)]
        self.seed, self.scenes = seed, [replace(scene, style="photo") for scene in drawn]
        self.wanted = masks(self.scenes, [(seed, 32, i) for i in range(count)])

    def true_pictures(self) -> Tensor:
        """As the world itself paints them, (n, 3, 64, 64): an upper bound."""
        return painted(self.scenes, self.seed, 32)

    def prompts(self, shape: bool = True) -> list[str]:
        """The prompts; without `shape` each is of "a toy"."""
        looks = [vars(scene.toys[0]) | {"background": scene.background} for scene in self.scenes]
        return [PROMPT.format_map(look if shape else look | {"shape": "toy"}) for look in looks]

    def draw(
        self, model: minti.StableDiffusion, control: ControlNet | None, prompts: Sequence[str], **options: object
    ) -> Tensor:
        """The samples, (n, 3, 64, 64); with or without the ControlNet they start from the same noise."""

        def hinted(some: slice) -> dict:
            if control is not None:
                control.hint = hints(self.wanted[some])
            return {}

        with control.attached(model) if control else nullcontext():
            return sample(model, prompts, self.seed, 16, hinted, **options)

    def measure(self, judge: Judge, pixels: Tensor) -> dict[str, float]:
        """Overlap, its standard deviation over the images, and the accuracy of each attribute and of all at once."""
        overlaps = overlap(drawn_masks(pixels), self.wanted)
        told = [toy_truth(scene.toys[0]) | {"background": scene.background} for scene in self.scenes]
        pairs = list(zip(verdicts(judge, pixels), told))
        rights = [all(verdict[name] == answer for name, answer in truth.items()) for verdict, truth in pairs]
        results = {"overlap": overlaps.mean().item(), "spread": overlaps.std().item()}
        return results | rates(pairs) | {"all": sum(rights) / len(rights)}


def main() -> None:
    """The table."""
    parser = options(__doc__, "outputs/evaluation-controlnet", count=(48, 2), steps=50)
    parser.add_argument("--controlnet", type=Path, default=CONTROLNET, help="default: the bundled one")
    study = Study(parser)
    args, judge, model = study.args, study.judge, study.model
    control, trials = ControlNet.from_pretrained(args.controlnet, model), Trials(args.count, args.seed)
    rows = {"the world's own images": trials.measure(judge, trials.true_pictures())}
    page = [2 * hints(trials.wanted[:COLUMNS]) - 1]
    how = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale, "quiet": args.quiet}
    for asked, shape in (("all looks named", True), ("shape not named", False)):
        for name, part in (("without", None), ("with the ControlNet", control)):
            pixels = trials.draw(model, part, trials.prompts(shape), **how)
            rows[f"{asked}, {name}"] = trials.measure(judge, pixels)
            page.append(pixels[:COLUMNS])
    save_png(grid(to_pil(torch.cat([*page[:3], page[4]])), columns=len(page[0])), study.folder / "page.png")
    print(accuracies(rows, ("overlap", "spread", *TOY, "background", "all")))
    write_json(study.folder / "measures.json", rows)


if __name__ == "__main__":
    run(main)
