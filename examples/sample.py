"""Draws pictures from prompts, with learned words if you like.

python examples/sample.py "a sketch of a <concept>" --embedding outputs/NAME/learned_embeds.safetensors
python examples/sample.py "a cartoon of a <concept>" --embedding ... --init-image PICTURE --strength 0.6
torchrun --nproc-per-node 2 examples/sample.py "a toy" --num-images 16
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from tqdm import tqdm

import minti
from common import arguments, generators, load, make_output, run
from minti import distributed
from minti.diffusion.samplers import SAMPLERS
from minti.images import grid, open_image, to_pil


def beginning(
    args: argparse.Namespace, model: minti.StableDiffusion
) -> tuple[dict[str, Any], Callable[[Image.Image], Image.Image]]:
    """How a run begins: options of `minti.sample_steps`, and what puts the kept part back into a drawing.

    The VAE blurs what it decodes, so the kept pixels come from the picture itself.
    """
    if not args.init_image:
        return {}, lambda drawn: drawn
    factor = model.vae.config.factor
    width, height = args.width or model.resolution, args.height or model.resolution
    if width % factor or height % factor:
        raise ValueError(f"{height} x {width} pixels: height and width must be multiples of {factor}")
    picture = ImageOps.fit(open_image(args.init_image), (width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(picture, dtype=np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        latents = model.encode(pixels).mean * model.vae.config.scaling_factor
    options = {"init_latents": latents, "strength": args.strength or (1.0 if args.mask else 0.8)}
    if not args.mask:
        return options, lambda drawn: drawn
    mask = ImageOps.fit(open_image(args.mask).convert("L"), (width, height)).point(lambda value: 255 * (value > 127))
    pixel_mask = torch.from_numpy(np.array(mask, dtype=np.float32))[None, None] / 255
    # A latent is drawn anew where any of its pixels is.
    options["mask"] = F.max_pool2d(pixel_mask, factor)
    return options, lambda drawn: Image.composite(drawn, picture, mask)


def main() -> None:
    """Prompts to pictures."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/samples")
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="what to draw; several prompts make several rows")
    parser.add_argument("--embedding", type=Path, action="append", default=[], help="a learned word; may be repeated")
    parser.add_argument("--num-images", type=int, default=4, help="pictures per prompt")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps")
    parser.add_argument("--sampler", choices=SAMPLERS, default="ddpm")
    parser.add_argument("--negative-prompt", default="", help="what not to draw")
    parser.add_argument("--height", type=int, help="in pixels; default: the model's own size")
    parser.add_argument("--width", type=int)
    parser.add_argument("--batch-size", type=int, default=16, help="pictures drawn at a time")
    begin = parser.add_argument_group("beginning with a picture")
    begin.add_argument("--init-image", type=Path, help="begin with this picture instead of noise")
    begin.add_argument("--strength", type=float, help="how far to leave it, 0 to 1; default: 0.8, with a mask 1")
    begin.add_argument("--mask", type=Path, help="a picture that is white where to draw, black where to keep")
    args = parser.parse_args()
    if args.num_images < 1 or args.batch_size < 1:
        parser.error("--num-images and --batch-size take numbers from 1")
    if args.mask and not args.init_image:
        parser.error("--mask says which part of --init-image to draw anew; give both")

    folder = make_output(args.output)
    model = load(args)
    for path in args.embedding:
        words = minti.load_embeddings(model, path)
        if distributed.rank() == 0:
            print(f"{path}: {', '.join(words)}")

    # Every prompt gets the same noises, so that the columns of the grid can be compared.
    jobs = [(prompt, i) for prompt in args.prompts for i in range(args.num_images)]
    share = -(-len(jobs) // distributed.world_size())
    mine = jobs[distributed.rank() * share :][:share]
    begin, keep = beginning(args, model)
    pictures = []
    with tqdm(total=len(mine) * args.steps, desc="drawing", disable=True if args.quiet else None) as bar:
        for start in range(0, len(mine), args.batch_size):
            batch = mine[start : start + args.batch_size]
            for step in minti.sample_steps(
                model,
                [prompt for prompt, _ in batch],
                args.negative_prompt,
                num_inference_steps=args.steps,
                guidance_scale=args.guidance_scale,
                sampler=args.sampler,
                generator=[generators(args.seed + i, 1)[0] for _, i in batch],
                height=args.height,
                width=args.width,
                **begin,
            ):
                bar.update(len(batch))
            pictures += [keep(picture) for picture in to_pil(model.decode(step.latents).detach())]
    pictures = distributed.gather(pictures)
    if distributed.rank() > 0:
        return
    for (prompt, i), picture in zip(jobs, pictures):
        picture.save(folder / f"{args.prompts.index(prompt):02}-{i:02}.png")
    grid(pictures, columns=args.num_images).save(folder / "grid.png")
    print(f"wrote {len(pictures)} pictures and {folder}/grid.png")


if __name__ == "__main__":
    run(main)
