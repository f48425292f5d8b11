"""Draws a picture and what another prompt makes of it, side by side: prompt-to-prompt (arXiv 2208.01626).

python examples/edit.py "a photo of a red star with a blue stripe" "a photo of a green star with a blue stripe"
python examples/edit.py SOURCE EDIT --cross-attention 0.8 --self-attention 0.8 --blend star --weight green=2
python examples/edit.py SOURCE EDIT --invert PICTURE
"""

from __future__ import annotations

from support.command_line import arguments, finite, generators, load, make_output, run, whole
from support.given import picture_latents
from support.pages import page

import argparse
from contextlib import ExitStack
from pathlib import Path

import torch
from PIL import Image, ImageOps
from tqdm import tqdm

import minti
from minti.editing.attention_maps import AttentionMaps
from minti.editing.inversion import inverted_noise
from minti.editing.prompt_to_prompt import PromptToPrompt, local_blend
from minti.formats.image_files import open_image, save_png
from minti.utils import randn


def share(text: str) -> float:
    """The type of an option that takes a share of the steps."""
    if not 0 <= (number := finite(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share of the steps, 0 to 1")
    return number


def weighted(text: str) -> tuple[str, float]:
    """The type of an option that takes a word and its weight."""
    word, equals, weight = text.rpartition("=")
    if not (word and equals):
        raise argparse.ArgumentTypeError(f"{text!r}; expected WORD=WEIGHT, as green=2")
    return word, finite(weight)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/edit")
    parser.add_argument("source", metavar="SOURCE", help="what the picture shows")
    parser.add_argument("edit", metavar="EDIT", help="what it is to show: the same in other words, or with some more")
    cross_help = "share of the steps, from the first, in which a word of EDIT looks where SOURCE's does"
    parser.add_argument("--cross-attention", type=share, default=0.8, metavar="SHARE", help=cross_help)
    self_help = "share of the steps in which each place looks where it does in the source, which keeps the layout"
    parser.add_argument("--self-attention", type=share, default=0.4, metavar="SHARE", help=self_help)
    blend_help = "keep the source outside this word's place; OLD=NEW where the prompts have two words for it"
    parser.add_argument("--blend", metavar="WORD", help=blend_help)
    weight_help = (
        "a word of EDIT, and how many times as much it counts in the steps of --cross-attention; may be repeated"
    )
    parser.add_argument("--weight", type=weighted, action="append", default=[], metavar="WORD=WEIGHT", help=weight_help)
    invert_help = "edit this picture, by the noise from which DDIM draws it with SOURCE"
    parser.add_argument("--invert", type=Path, metavar="PICTURE", help=invert_help)
    word_help = "a file of learned words; may be repeated"
    parser.add_argument("--embedding", type=Path, metavar="FILE", action="append", default=[], help=word_help)
    parser.add_argument("--num-images", type=whole(1), default=4, help="pairs, drawn in one go; with --invert one")
    parser.add_argument("--steps", type=whole(1), default=50, help="steps of DDIM")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    """Two prompts to pairs of pictures."""
    args = parse()
    folder, model = make_output(args.output), load(args)
    for path in args.embedding:
        minti.load_embeddings(model, path)
    n = 1 if args.invert else args.num_images
    sources, edits, rows = [args.source] * n, [args.edit] * n, {}
    shares = (args.cross_attention, args.self_attention)
    part = PromptToPrompt(model, sources, edits, *shares, dict(args.weight))
    maps = AttentionMaps(model, [*sources, *edits])
    before, _, after = (args.blend or "").partition("=")
    noise = randn(model.latents_shape(n), generators(args.seed, n), model.device, model.dtype)
    if args.invert:
        side = model.resolution
        given = ImageOps.fit(open_image(args.invert), (side, side), Image.Resampling.BICUBIC)
        noise = inverted_noise(model, picture_latents(model, given, side, side), args.source, args.steps)
        rows["given"] = [given]
    with ExitStack() as stack:
        stack.enter_context(part.attached(model))
        bar = stack.enter_context(tqdm(total=args.steps, desc="drawing", disable=True if args.quiet else None))
        options = {"sampler": "ddim", "num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}
        if args.blend:
            stack.enter_context(maps.attached(model))
            options["keep"] = local_blend(maps, [before] * n + [after or before] * n)
        options |= {"latents": torch.cat([noise, noise]), "on_step": lambda step: bar.update()}
        drawn = minti.sample(model, sources + edits, **options)
    rows |= {"source": drawn[:n], "edited": drawn[n:]}
    for name, pictures in rows.items():
        for i, picture in enumerate(pictures):
            save_png(picture, folder / f"{i:02}-{name}.png")
    save_png(page(list(rows.items()), size=model.resolution), folder / "edit.png")
    print(f"wrote {n} pictures of each of {', '.join(rows)}, and {folder}/edit.png")


if __name__ == "__main__":
    run(main)
