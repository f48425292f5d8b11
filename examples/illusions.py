"""Optical illusions: visual anagrams, which show another prompt when turned, and hybrid images, from near and afar.

python examples/illusions.py "a photo of a red triangle" "a photo of a red heart"                        # upside down
python examples/illusions.py "a photo of a red circle" "a sketch of a star" --hybrid 1.5
"""

from support.command_line import arguments, finite, generators, load, make_output, run, whole
from support.pages import page

import torch

import minti
from minti.denoising import SAMPLERS, Predict
from minti.formats.image_files import save_png
from minti.guidance.illusions import VIEWS, anagram, blurred, hybrid
from minti.images import to_pil
from minti.sampling import classifier_free_guidance


def second(model: minti.StableDiffusion, prompt: str, count: int, scale: float) -> Predict:
    """Classifier-free guidance by another prompt than the run's own, for a batch of that size."""
    context, empty = (model.encode_prompt([text] * count) for text in (prompt, ""))
    return classifier_free_guidance(model.unet, context, empty, scale)


@torch.no_grad()
def main() -> None:
    """Samples the images, and writes a page of two rows: as they are, and turned or blurred."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/illusions")
    parser.add_argument("one", metavar="PROMPT", help="prompt of the image as it stands; with --hybrid: from afar")
    parser.add_argument("other", metavar="PROMPT", help="prompt of the turned image; with --hybrid: from near")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--turn", choices=VIEWS, default="half", help="upside down, a quarter turn clockwise, or mirrored")
    hybrid_help = "hybrid image: low frequencies by the first prompt, high ones by the other; the blur's width"
    how.add_argument("--hybrid", type=finite, metavar="SIGMA", help=hybrid_help)
    parser.add_argument("--num-images", type=whole(1), default=8)
    parser.add_argument("--steps", type=whole(1), default=20, help="denoising steps, with four UNet evaluations each")
    parser.add_argument("--sampler", choices=SAMPLERS, default="dpm-solver++")
    args = parser.parse_args()
    if args.hybrid is not None and args.hybrid <= 0:
        parser.error(f"--hybrid {args.hybrid:g}: expected more than 0, in latents")
    folder, model = make_output(args.output), load(args)

    view = VIEWS[args.turn]
    predict = second(model, args.other, args.num_images, args.guidance_scale)
    pixels = minti.sample(
        model,
        [args.one] * args.num_images,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance_scale,
        sampler=args.sampler,
        generator=generators(args.seed, args.num_images),
        guidance=hybrid(predict, args.hybrid) if args.hybrid else anagram(predict, view),
        output="pixels",
    )
    if args.hybrid:
        afar = blurred(pixels, args.hybrid * model.vae.config.factor)
        rows = [(args.other, to_pil(pixels)), (f"from afar: {args.one}", to_pil(afar))]
    else:
        turned = {"half": "upside down", "quarter": "a quarter turned", "mirror": "mirrored"}[args.turn]
        rows = [(args.one, to_pil(pixels)), (f"{turned}: {args.other}", to_pil(view.turn(pixels)))]
    for i, image in enumerate(rows[0][1]):
        save_png(image, folder / f"{i:02}.png")
    save_png(page(rows, size=96), folder / "page.png")
    print(f"wrote {args.num_images} images and {folder}/page.png")


if __name__ == "__main__":
    run(main)
