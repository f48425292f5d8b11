"""Score distillation: optimizes latents, or an image made of soft ellipses, until they fit a prompt.

    python examples/distil.py "a photo of a red star" "a photo of a green heart"
    python examples/distil.py "a photo of a red star" --ellipses 12
    python examples/distil.py "a photo of a red star" --jacobian      # backpropagates through the UNet too

Writes a page of the images during the optimization.
"""

from support.command_line import arguments, finite, generators, load, make_output, run, whole
from support.pages import page

import time

import torch
from PIL import Image
from tqdm import tqdm

import minti
from minti.distillation.score_distillation import Drawing, score_distillation
from minti.formats.image_files import save_png
from minti.images import to_pil


class Ellipses(Drawing):
    """A differentiable image of soft ellipses on a flat background, one over another.

    Attributes:
        shapes: (b, k, 5): centre, log width and log height, and angle; the image spans [-1, 1].
        colours: (b, k + 1, 3), before a sigmoid; the first is the background.
    """

    def __init__(self, model: minti.StableDiffusion, count: int, ellipses: int, generator: torch.Generator):
        torch.nn.Module.__init__(self)
        self.encode, self.side = (lambda pixels: model.scale(model.vae.encode(pixels).mean)), model.resolution
        shapes = torch.randn(count, ellipses, 5, generator=generator) * torch.tensor([0.4, 0.4, 0.2, 0.2, 1.0])
        self.shapes = torch.nn.Parameter(shapes + torch.tensor([0, 0, -1.2, -1.2, 0]))
        self.colours = torch.nn.Parameter(0.5 * torch.randn(count, ellipses + 1, 3, generator=generator))

    def pixels(self) -> torch.Tensor:
        """Renders the images, (b, 3, side, side) in [-1, 1]."""
        line = torch.linspace(-1, 1, self.side)
        y, x = torch.meshgrid(line, line, indexing="ij")  # side side
        image, *colours = self.colours.sigmoid()[..., None, None].unbind(1)  # b 3 1 1 each
        for shape, colour in zip(self.shapes.unbind(1), colours):
            cx, cy, width, height, angle = shape.T[:, :, None, None, None]  # b 1 1 1 each
            u = (x - cx) * angle.cos() + (y - cy) * angle.sin()
            v = (y - cy) * angle.cos() - (x - cx) * angle.sin()
            # opacity = sigmoid(10 (1 - (u / e^width)^2 - (v / e^height)^2))
            opacity = torch.sigmoid(10 * (1 - (u / width.exp()) ** 2 - (v / height.exp()) ** 2))  # b 1 side side
            image = opacity * colour + (1 - opacity) * image
        return 2 * image - 1

    def forward(self) -> torch.Tensor:
        """Their latents."""
        return self.encode(self.pixels())


def main() -> None:
    """Starts from noise, optimizes, and saves the images of four stages."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/distilled")
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="the prompts to fit")
    parser.add_argument("--count", type=whole(1), default=4, help="images for each prompt")
    parser.add_argument("--steps", type=whole(1), default=160)
    parser.add_argument("--learning-rate", type=finite, default=0.05)
    parser.add_argument("--ellipses", type=whole(0), default=0, help="ellipses in an image; 0: optimize latents")
    parser.add_argument("--jacobian", action="store_true", help="backpropagate through the UNet too")
    args = parser.parse_args()
    folder, model = make_output(args.output), load(args)
    prompts = [prompt for prompt in args.prompts for _ in range(args.count)]
    generator = generators(args.seed, 1)[0]
    if args.ellipses:
        drawing = Ellipses(model, len(prompts), args.ellipses, generator)
    else:
        drawing = Drawing(torch.randn(model.latents_shape(len(prompts)), generator=generator))
    drawing.to(model.device, model.dtype)
    options = {name: getattr(args, name) for name in ("steps", "guidance_scale", "learning_rate", "jacobian")}
    loop = score_distillation(model, drawing, prompts, **options, generator=generator)
    at = {args.steps * quarter // 4 for quarter in (1, 2, 3, 4)} - {0}
    rows, began = [("before", images(model, drawing))], time.perf_counter()
    for step, _ in enumerate(tqdm(loop, "distilling", args.steps, disable=True if args.quiet else None), 1):
        if step in at:
            rows.append((f"after {step} steps", images(model, drawing)))
    save_png(page(rows, size=64), folder / "distilled.png")
    print(f"{args.steps} steps in {time.perf_counter() - began:.0f} s; wrote {folder}/distilled.png")


@torch.no_grad()
def images(model: minti.StableDiffusion, drawing: Drawing) -> list[Image.Image]:
    """The decoded images."""
    return to_pil(model.decode(drawing()))


if __name__ == "__main__":
    run(main)
