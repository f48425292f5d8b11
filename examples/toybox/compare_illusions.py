"""Visual anagrams: how often an image that turned is another one is right both ways, by the judge.

    python examples/toybox/compare_illusions.py

Beside it turning alone, without the second prompt; and by how many grey levels the decoder is off, which makes of
turned latents not quite the turned image. Prints a table in per cent; writes illusions.csv and a page of images.
"""

from study import Row, Study, options
from support.command_line import run

from collections.abc import Iterator

import torch
from torch import Tensor

import world
from illusions import second
from measure import verdicts
from minti.guidance.illusions import VIEWS, anagram
from networks import Judge

PAIRS = [  # how to turn, and what is then to be seen of "a photo of a ..."
    ("half", "red circle with a yellow half", "yellow circle with a red half"),
    ("mirror", "pink square with a blue side", "blue square with a pink side"),
    ("quarter", "red square with a white stripe", "red square with a white belt"),
    ("half", "red triangle", "red heart"),
    ("half", "red triangle", "green heart"),
    ("half", "yellow star", "yellow moon"),
]
SHARES = ("first right", "second", "both", "both without the second prompt")
COLUMNS = {"as it stands": "", "turned": ""} | dict.fromkeys(SHARES, ".0%") | {"decoder off": ".1f"}


def right(judge: Judge, pixels: Tensor, toy: str) -> Tensor:
    """Whether each image shows all that is said of a toy, "red heart" or "red circle with a yellow half": (b,)."""
    words = toy.replace("with a ", "").split()
    asked = dict(zip(("main_0", "shape_0", "second_0", "pattern_0"), words))
    assert asked["shape_0"] in world.SHAPES
    return torch.tensor([all(seen[head] == word for head, word in asked.items()) for seen in verdicts(judge, pixels)])


def rows(study: Study) -> Iterator[Row]:
    """A row of the table, and two of the page, for each pair."""
    model, many, scale = study.model, study.args.count, study.args.guidance_scale
    for turn, one, other in study.bar(PAIRS, "pairs"):
        view, shares = VIEWS[turn], []
        predict = second(model, f"a photo of a {other}", many, scale)
        for guidance in (lambda plain: plain, anagram(predict, view)):
            how = {"sampler": "dpm-solver++", "guidance": guidance, "output": "latents", "batch_size": many}
            latents = study.sample([f"a photo of a {one}"] * many, **how)
            pixels = model.decode(latents)
            first, turned = right(study.judge, pixels, one), right(study.judge, view.turn(pixels), other)
            shares.append([found.float().mean().item() for found in (first, turned, first & turned)])
        study.show("illusions", one, pixels[:8])
        study.show("illusions", f"{turn}: {other}", view.turn(pixels[:8]))
        off = 127.5 * (model.decode(view.turn(latents)) - view.turn(pixels)).abs().mean().item()
        yield dict(zip(COLUMNS, (one, f"{turn}: {other}", *shares[1], shares[0][2], off)))


@torch.no_grad()
def main() -> None:
    """The table and the page."""
    study = Study(options(__doc__, "outputs/compare-illusions", count=32, steps=15))
    study.table("illusions", rows(study), COLUMNS)


if __name__ == "__main__":
    run(main)
