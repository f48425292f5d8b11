"""Draws past a picture's edges, a border at a time: every round keeps what is there and draws the border around it.

python examples/outpaint.py PICTURE "a photo on a teal background" --rounds 2 --border 16
"""

from __future__ import annotations

from support.command_line import arguments, generators, load, make_output, run, whole
from support.given import latent_mask, picture_latents

from pathlib import Path

from PIL import Image, ImageOps
from tqdm import tqdm

import minti
from minti.editing.image_to_image import ImageToImage
from minti.formats.image_files import open_image, save_png

LARGEST = 4  # times the model's own size: beyond it no feature map sees more than a part of the canvas


def outpainted(
    model: minti.StableDiffusion, picture: Image.Image, prompt: str, border: int, **options: object
) -> Image.Image:
    """The picture with `border` pixels more on every side, drawn in the mask (`003`, 17); the middle stays as it is.

    Raises ValueError: a border that is no multiple of the VAE's factor, a canvas that is too large.
    """
    factor, largest = model.vae.config.factor, LARGEST * model.resolution
    width, height = (side + 2 * border for side in picture.size)
    if border % factor:
        raise ValueError(f"a border of {border} pixels; expected a multiple of {factor}")
    if max(width, height) > largest:
        raise ValueError(
            f"a canvas of {width} x {height} pixels; at most {largest} a side, fewer rounds or a narrower border"
        )
    canvas, mask = Image.new("RGB", (width, height)), Image.new("L", (width, height), 255)
    # The picture mirrored at its edges, so that its own latents next to them see nothing strange.
    mirrored = {(-1, 0): ImageOps.mirror, (1, 0): ImageOps.mirror, (0, -1): ImageOps.flip, (0, 1): ImageOps.flip}
    for (x, y), turned in mirrored.items():
        canvas.paste(turned(picture), (border + x * picture.width, border + y * picture.height))
    canvas.paste(picture, (border, border))
    mask.paste(0, (border, border, border + picture.width, border + picture.height))
    inpainting = ImageToImage(picture_latents(model, canvas, height, width), 1.0, latent_mask(mask, factor))
    [drawn] = minti.sample(model, prompt, begin=inpainting, **options)
    drawn.paste(picture, (border, border))
    return drawn


def main() -> None:
    """A picture to a larger one."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/outpainting")
    parser.add_argument("picture", type=Path, help="of any size; first made the model's own")
    parser.add_argument("prompt", help="what the whole canvas shows")
    parser.add_argument("--rounds", type=whole(1), default=2, help="how often a border is drawn")
    parser.add_argument("--border", type=whole(1), default=16, help="its width in pixels")
    parser.add_argument("--steps", type=whole(1), default=50, help="denoising steps of each round")
    args = parser.parse_args()
    folder, model = make_output(args.output), load(args)
    picture = ImageOps.fit(open_image(args.picture), (model.resolution,) * 2, Image.Resampling.BICUBIC)
    options = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}
    [generator] = generators(args.seed, 1)
    for _ in tqdm(range(args.rounds), "rounds", disable=True if args.quiet else None):
        picture = outpainted(model, picture, args.prompt, args.border, generator=generator, **options)
    save_png(picture, folder / "outpainted.png")
    print(f"wrote {folder}/outpainted.png")


if __name__ == "__main__":
    run(main)
