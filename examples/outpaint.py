"""Outpainting: extends an image beyond its edges, a border in each round, by inpainting a mask around it.

python examples/outpaint.py IMAGE "a photo on a teal background" --rounds 2 --border 16
"""

from support.command_line import arguments, generators, load, make_output, run, whole
from support.given import open_fitted

from pathlib import Path

from PIL import Image, ImageOps
from tqdm import tqdm

import minti
from minti.editing.image_to_image import ImageToImage
from minti.editing.images import image_latents, latent_mask
from minti.formats.image_files import save_png

LARGEST = 4  # times the model's own size: beyond it no feature map sees the whole canvas


def outpainted(
    model: minti.StableDiffusion, image: Image.Image, prompt: str, border: int, **options: object
) -> Image.Image:
    """The image with `border` pixels more on every side, inpainted; the middle stays as it is (question 17 of `003`,
    "Explain outpainting and image extension").

    Raises ValueError: a border that is no multiple of the VAE's factor, a canvas that is too large.
    """
    factor, largest = model.vae.config.factor, LARGEST * model.resolution
    width, height = (side + 2 * border for side in image.size)
    if border % factor:
        raise ValueError(f"a border of {border} pixels; expected a multiple of {factor}")
    if max(width, height) > largest:
        raise ValueError(
            f"a canvas of {width} x {height} pixels; at most {largest} a side, fewer rounds or a narrower border"
        )
    canvas, mask = Image.new("RGB", (width, height)), Image.new("L", (width, height), 255)
    # The image is mirrored at its edges, so that no hard edge changes its latents there.
    mirrored = {(-1, 0): ImageOps.mirror, (1, 0): ImageOps.mirror, (0, -1): ImageOps.flip, (0, 1): ImageOps.flip}
    for (x, y), turned in mirrored.items():
        canvas.paste(turned(image), (border + x * image.width, border + y * image.height))
    canvas.paste(image, (border, border))
    mask.paste(0, (border, border, border + image.width, border + image.height))
    inpainting = ImageToImage(image_latents(model, canvas, height, width), 1.0, latent_mask(mask, factor))
    [extended] = minti.sample(model, prompt, begin=inpainting, **options)
    extended.paste(image, (border, border))
    return extended


def main() -> None:
    """Extends an image by some borders."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/outpainting")
    parser.add_argument("image", type=Path, metavar="IMAGE", help="is cropped and resized to the model's own size")
    parser.add_argument("prompt", help="what the whole extended image shows")
    parser.add_argument("--rounds", type=whole(1), default=2, help="how many borders")
    parser.add_argument("--border", type=whole(1), default=16, help="width of a border, in pixels")
    parser.add_argument("--steps", type=whole(1), default=50, help="denoising steps in each round")
    args = parser.parse_args()
    folder, model = make_output(args.output), load(args)
    image = open_fitted(args.image, model.resolution, model.resolution)
    options = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}
    [generator] = generators(args.seed, 1)
    for _ in tqdm(range(args.rounds), "rounds", disable=True if args.quiet else None):
        image = outpainted(model, image, args.prompt, args.border, generator=generator, **options)
    save_png(image, folder / "outpainted.png")
    print(f"wrote {folder}/outpainted.png")


if __name__ == "__main__":
    run(main)
