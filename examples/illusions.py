"""Two pictures in one: turned it is another, or it is one from near and another from afar.

python examples/illusions.py "a photo of a red triangle" "a photo of a red heart"                        # upside down
python examples/illusions.py "a photo of a red circle" "a sketch of a star" --hybrid 1.5
"""

from __future__ import annotations

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
    """A page of two rows: the pictures, and the same turned, or from afar."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/illusions")
    parser.add_argument("one", metavar="PROMPT", help="what the picture shows as it stands; with --hybrid: from afar")
    parser.add_argument("other", metavar="PROMPT", help="what it shows turned; with --hybrid: from near")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--turn", choices=VIEWS, default="half", help="upside down, a quarter turn clockwise, or mirrored")
    hybrid_help = "do not turn: coarse by the first prompt, fine by the other, parted by a blur so many latents wide"
    how.add_argument("--hybrid", type=finite, metavar="SIGMA", help=hybrid_help)
    parser.add_argument("--num-images", type=whole(1), default=8)
    parser.add_argument("--steps", type=whole(1), default=20, help="denoising steps, of four evaluations each")
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
    for i, picture in enumerate(rows[0][1]):
        save_png(picture, folder / f"{i:02}.png")
    save_png(page(rows, size=96), folder / "page.png")
    print(f"wrote {args.num_images} pictures and {folder}/page.png")


if __name__ == "__main__":
    run(main)
