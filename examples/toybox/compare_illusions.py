"""How often a picture that turned is another is right both ways, as the judge sees it.

    python examples/toybox/compare_illusions.py

Beside it what turning alone does, without the second prompt; and by how many grey levels the decoder is off, for it
makes of turned latents not quite the turned picture. Prints a table in per cent; writes a page of the first pictures.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from support.command_line import arguments, generators, load, make_output, run, whole
from support.pages import page

import torch
from torch import Tensor
from tqdm import tqdm

import minti
import world
from illusions import second
from measure import load_judge, verdicts
from minti.formats.image_files import save_png
from minti.guidance.illusions import VIEWS, anagram
from minti.images import to_pil
from networks import Judge

PAIRS = [  # how to turn, and what is then to be seen of "a photo of a ..."
    ("half", "red circle with a yellow half", "yellow circle with a red half"),
    ("mirror", "pink square with a blue side", "blue square with a pink side"),
    ("quarter", "red square with a white stripe", "red square with a white belt"),
    ("half", "red triangle", "red heart"),
    ("half", "red triangle", "green heart"),
    ("half", "yellow star", "yellow moon"),
]


def right(judge: Judge, pixels: Tensor, toy: str) -> Tensor:
    """Whether each picture shows all that is said of a toy, "red heart" or "red circle with a yellow half": (b,)."""
    words = toy.replace("with a ", "").split()
    asked = dict(zip(("main_0", "shape_0", "second_0", "pattern_0"), words))
    assert asked["shape_0"] in world.SHAPES
    return torch.tensor([all(seen[head] == word for head, word in asked.items()) for seen in verdicts(judge, pixels)])


@torch.no_grad()
def main() -> None:
    """A row of the table, and two of the page, for each pair."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/compare-illusions")
    parser.add_argument("--count", type=whole(1), default=32, help="pictures of each pair")
    parser.add_argument("--steps", type=whole(1), default=15, help="of DPM-Solver++")
    args = parser.parse_args()
    folder, model = make_output(args.output), load(args)
    judge, rows, many = load_judge(args.model), [], args.count
    options = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale, "sampler": "dpm-solver++"}
    print("| as it stands | turned | first right | second | both | both without the second prompt | decoder off |")
    print("|---" * 7 + "|")
    for turn, one, other in tqdm(PAIRS, "pairs", disable=True if args.quiet else None):
        view, shares = VIEWS[turn], []
        predict = second(model, f"a photo of a {other}", many, args.guidance_scale)
        for guidance in (lambda plain: plain, anagram(predict, view)):
            drawn = {"generator": generators(args.seed, many), "guidance": guidance, "output": "latents"}
            latents = minti.sample(model, [f"a photo of a {one}"] * many, **options, **drawn)
            pixels = model.decode(latents)
            first, turned = right(judge, pixels, one), right(judge, view.turn(pixels), other)
            shares.append([100 * found.float().mean().item() for found in (first, turned, first & turned)])
        off = 127.5 * (model.decode(view.turn(latents)) - view.turn(pixels)).abs().mean().item()
        cells = " | ".join(f"{share:.0f}" for share in (*shares[1], shares[0][2]))
        print(f"| {one} | {turn}: {other} | {cells} | {off:.1f} |", flush=True)
        rows += [(one, to_pil(pixels[:8])), (f"{turn}: {other}", to_pil(view.turn(pixels[:8])))]
        save_png(page(rows, size=64), folder / "illusions.png")


if __name__ == "__main__":
    run(main)
