"""Score distillation: latents, or a picture made of soft ellipses, become what a prompt says.

    python examples/distil.py "a photo of a red star" "a photo of a green heart"
    python examples/distil.py "a photo of a red star" --ellipses 12
    python examples/distil.py "a photo of a red star" --jacobian      # through the network too

Writes a page of the pictures on their way.
"""

from __future__ import annotations

from support.command_line import arguments, finite, generators, load, make_output, run, whole
from support.pages import page

import time

import torch
from PIL import Image
from tqdm import tqdm

import minti
from minti.distillation.score_distillation import Drawing, score_distillation
from minti.images import to_pil


class Ellipses(Drawing):
    """A picture of soft ellipses on a flat ground, one over another: theta is their places, sizes and colours.

    Attributes:
        shapes: (b, k, 5): centre, width and height, and angle; the picture reaches from -1 to 1.
        colours: (b, k + 1, 3), before a sigmoid; the first is the ground's.
    """

    def __init__(self, model: minti.StableDiffusion, count: int, ellipses: int, generator: torch.Generator):
        torch.nn.Module.__init__(self)
        self.encode, self.side = (lambda pixels: model.scale(model.vae.encode(pixels).mean)), model.resolution
        shapes = torch.randn(count, ellipses, 5, generator=generator) * torch.tensor([0.4, 0.4, 0.2, 0.2, 1.0])
        self.shapes = torch.nn.Parameter(shapes + torch.tensor([0, 0, -1.2, -1.2, 0]))
        self.colours = torch.nn.Parameter(0.5 * torch.randn(count, ellipses + 1, 3, generator=generator))

    def pixels(self) -> torch.Tensor:
        """(b, 3, side, side) in [-1, 1]."""
        line = torch.linspace(-1, 1, self.side)
        y, x = torch.meshgrid(line, line, indexing="ij")  # side side
        colours = self.colours.sigmoid()[..., None, None]  # b k+1 3 1 1
        picture = colours[:, 0]
        for shape, colour in zip(self.shapes.unbind(1), colours.unbind(1)[1:]):
            cx, cy, width, height, angle = shape.T[:, :, None, None]  # b 1 1 each
            u = (x - cx) * angle.cos() + (y - cy) * angle.sin()
            v = (y - cy) * angle.cos() - (x - cx) * angle.sin()
            # inside = sigmoid(10 (1 - (u / e^width)^2 - (v / e^height)^2))
            inside = torch.sigmoid(10 * (1 - (u / width.exp()) ** 2 - (v / height.exp()) ** 2))[
                :, None
            ]  # b 1 side side
            picture = inside * colour + (1 - inside) * picture
        return 2 * picture - 1

    def forward(self) -> torch.Tensor:
        return self.encode(self.pixels())


def main() -> None:
    """Draws from nothing, by the loop, and shows the way."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/distilled")
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="what to become")
    parser.add_argument("--count", type=whole(1), default=4, help="pictures of each prompt")
    parser.add_argument("--steps", type=whole(1), default=160)
    parser.add_argument("--learning-rate", type=finite, default=0.05)
    parser.add_argument("--ellipses", type=whole(0), default=0, help="that a picture is made of; 0: latents themselves")
    parser.add_argument("--jacobian", action="store_true", help="go down the whole gradient, through the network too")
    args = parser.parse_args()
    folder, model = make_output(args.output), load(args)
    prompts = [prompt for prompt in args.prompts for _ in range(args.count)]
    generator = generators(args.seed, 1)[0]
    if args.ellipses:
        drawing = Ellipses(model, len(prompts), args.ellipses, generator)
    else:
        drawing = Drawing(torch.randn(model.latents_shape(len(prompts)), generator=generator))
    drawing.to(model.device, model.dtype)
    loop = score_distillation(
        model,
        drawing,
        prompts,
        steps=args.steps,
        guidance_scale=args.guidance_scale,
        learning_rate=args.learning_rate,
        jacobian=args.jacobian,
        generator=generator,
    )
    at = {args.steps * part // 4 for part in (1, 2, 3, 4)} - {0}
    seen, began = [("what it begins as", pictures(model, drawing))], time.perf_counter()
    for number, _ in enumerate(tqdm(loop, "distilling", args.steps, disable=True if args.quiet else None), 1):
        if number in at:
            seen.append((f"after {number} steps", pictures(model, drawing)))
    page(seen, size=64).save(folder / "distilled.png")
    print(f"{args.steps} steps in {time.perf_counter() - began:.0f} s; wrote {folder}/distilled.png")


@torch.no_grad()
def pictures(model: minti.StableDiffusion, drawing: Drawing) -> list[Image.Image]:
    """What it draws now, as the decoder shows it."""
    return to_pil(model.decode(drawing()))


if __name__ == "__main__":
    run(main)
