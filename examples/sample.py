"""Draws pictures from prompts, with learned words if you like.

python examples/sample.py "a sketch of a <concept>" --embedding outputs/NAME/learned_embeds.safetensors
"""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

import minti
from common import arguments, generators, load, make_output, run
from minti.images import grid, to_pil
from minti.samplers import SAMPLERS


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
    args = parser.parse_args()
    if args.num_images < 1 or args.batch_size < 1:
        parser.error("--num-images and --batch-size take numbers from 1")

    folder = make_output(args.output)
    model = load(args)
    for path in args.embedding:
        print(f"{path}: {', '.join(minti.load_embeddings(model, path))}")

    # Every prompt gets the same noises, so that the columns of the grid can be compared.
    jobs = [(prompt, i) for prompt in args.prompts for i in range(args.num_images)]
    pictures = []
    with tqdm(total=len(jobs) * args.steps, desc="drawing", disable=True if args.quiet else None) as bar:
        for start in range(0, len(jobs), args.batch_size):
            batch = jobs[start : start + args.batch_size]
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
            ):
                bar.update(len(batch))
            pictures += to_pil(model.decode(step.latents).detach())
    for (prompt, i), picture in zip(jobs, pictures):
        picture.save(folder / f"{args.prompts.index(prompt):02}-{i:02}.png")
    grid(pictures, columns=args.num_images).save(folder / "grid.png")
    print(f"wrote {len(pictures)} pictures and {folder}/grid.png")


if __name__ == "__main__":
    run(main)
