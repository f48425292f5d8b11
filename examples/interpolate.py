"""Interpolation between two images: of their encoded prompts, and of their noise, by lerp and by slerp.

python examples/interpolate.py "a photo of a big red star" "a photo of a big green star"
"""

from support.command_line import arguments, generators, load, make_output, run, whole
from support.pages import page

import torch
from PIL import Image
from torch import Tensor

import minti
from minti.formats.image_files import save_png
from minti.utils import randn


def lerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """(1 - s) a + s b: of two independent standard normal noises the variance is (1 - s)^2 + s^2, 1/2 half way."""
    return torch.lerp(a, b, share) if 0 < share < 1 else (b if share else a)


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """sin((1 - s) w) / sin w · a + sin(s w) / sin w · b, with the angle w of a and b, which is near 90° for noise.

    The variance stays 1 (K. Shoemake 1985; DDIM, arXiv 2010.02502, eq. 67). (b, ...), each image by its own angle.
    """
    if share in (0, 1):
        return b if share else a
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    w = torch.acos(torch.cosine_similarity(flat_a, flat_b).clamp(-1, 1))
    mixed = (torch.sin((1 - share) * w)[:, None] * flat_a + torch.sin(share * w)[:, None] * flat_b) / torch.sin(w)[
        :, None
    ]
    return mixed.view_as(a)


@torch.no_grad()
def main() -> None:
    """Writes a page with a row for each kind of interpolation, from one image to the other."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/interpolation")
    parser.add_argument("prompts", nargs=2, metavar="PROMPT", help="of the first and the last image")
    parser.add_argument("--columns", type=whole(2), default=11, help="images in a row, both ends included")
    parser.add_argument("--steps", type=whole(1), default=20, help="DPM-Solver++ steps")
    args = parser.parse_args()
    folder, model = make_output(args.output), load(args)
    shares = [i / (args.columns - 1) for i in range(args.columns)]
    first, last = (model.encode_prompt(prompt) for prompt in args.prompts)
    shape = model.latents_shape(1)
    here, there = (randn(shape, one, model.device, model.dtype) for one in generators(args.seed, 2))
    contexts = [lerp(first, last, share) for share in shares]
    # Prompt arithmetic: the difference of the two encodings, added to the first, and beyond the second.
    differences = [first + 1.5 * share * (last - first) for share in shares]
    rows = {
        "encoded prompts": (contexts, [here] * args.columns),
        "noise, linear": ([first] * args.columns, [lerp(here, there, share) for share in shares]),
        "noise, spherical": ([first] * args.columns, [slerp(here, there, share) for share in shares]),
        "text difference": (differences, [here] * args.columns),
    }
    options = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale, "sampler": "dpm-solver++"}
    images = [
        (label, minti.sample(model, torch.cat(prompts), latents=torch.cat(noises), **options))
        for label, (prompts, noises) in rows.items()
    ]
    for label, (_, noises) in rows.items():
        if label.startswith("noise"):
            print(f"{label}: standard deviation half way {noises[args.columns // 2].std():.2f}")
    parts = (
        (images[:-1], [f"{share:.2f}" for share in shares]),
        (images[-1:], [f"{1.5 * share:.2f}" for share in shares]),
    )
    above, below = (page(part, size=96, headings=headings) for part, headings in parts)
    whole_page = Image.new("RGB", (above.width, above.height + below.height))
    whole_page.paste(above, (0, 0))
    whole_page.paste(below, (0, above.height))
    save_png(whole_page, folder / "interpolation.png")
    print(f"wrote {folder}/interpolation.png")


if __name__ == "__main__":
    run(main)
