"""Prompt-to-prompt: samples an image and its edit by another prompt, side by side (arXiv 2208.01626).

python examples/edit.py "a photo of a red star with a blue stripe" "a photo of a green star with a blue stripe"
python examples/edit.py SOURCE EDIT --cross-attention 0.8 --self-attention 0.8 --blend star --weight green=2
python examples/edit.py SOURCE EDIT --invert IMAGE
"""

from support.adapters import load_words
from support.command_line import arguments, finite, generators, load, make_output, run, whole
from support.given import open_fitted
from support.option_types import filled
from support.pages import page

import argparse
from contextlib import ExitStack
from pathlib import Path

import torch
from tqdm import tqdm

import minti
from minti.editing.attention_maps import AttentionMaps
from minti.editing.images import image_latents
from minti.editing.inversion import inverted_noise
from minti.editing.prompt_to_prompt import PromptToPrompt, local_blend
from minti.formats.image_files import save_png
from minti.utils import randn


def share(text: str) -> float:
    """The type of an option that takes a fraction of the steps."""
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
    parser.add_argument("source", metavar="SOURCE", help="prompt of the image")
    parser.add_argument("edit", metavar="EDIT", help="prompt of the edited image: some words swapped or added")
    cross_help = "fraction of the steps, from the first, with SOURCE's cross-attention maps"
    parser.add_argument("--cross-attention", type=share, default=0.8, metavar="SHARE", help=cross_help)
    self_help = "fraction of the steps with SOURCE's self-attention maps, which keep the layout"
    parser.add_argument("--self-attention", type=share, default=0.4, metavar="SHARE", help=self_help)
    blend_help = "local blend: keep the source image outside this word's region; OLD=NEW if the prompts differ in it"
    parser.add_argument("--blend", type=filled, metavar="WORD", help=blend_help)
    weight_help = "a word of EDIT and the factor of its attention, in the steps of --cross-attention; may be repeated"
    parser.add_argument("--weight", type=weighted, action="append", default=[], metavar="WORD=WEIGHT", help=weight_help)
    invert_help = "edit this image, by DDIM inversion with SOURCE"
    parser.add_argument("--invert", type=Path, metavar="IMAGE", help=invert_help)
    word_help = "a file of learned words, optionally under a new name; may be repeated"
    parser.add_argument("--embedding", metavar="FILE[=NAME]", action="append", default=[], help=word_help)
    parser.add_argument(
        "--num-images", type=whole(1), default=4, help="pairs of images, in one batch; with --invert one"
    )
    parser.add_argument("--steps", type=whole(1), default=50, help="DDIM steps")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    """Samples pairs of images from two prompts, and writes them beside each other."""
    args = parse()
    folder, model = make_output(args.output), load(args)
    load_words(model, args.embedding, [args.source, args.edit])
    n = 1 if args.invert else args.num_images
    sources, edits, rows = [args.source] * n, [args.edit] * n, {}
    shares = (args.cross_attention, args.self_attention)
    adapter = PromptToPrompt(model, sources, edits, *shares, dict(args.weight))
    maps = AttentionMaps(model, [*sources, *edits])
    before, _, after = (args.blend or "").partition("=")
    noise = randn(model.latents_shape(n), generators(args.seed, n), model.device, model.dtype)
    if args.invert:
        side = model.resolution
        given = open_fitted(args.invert, side, side)
        noise = inverted_noise(model, image_latents(model, given, side, side), args.source, args.steps)
        rows["given"] = [given]
    with ExitStack() as stack:
        stack.enter_context(adapter.attached(model))
        bar = stack.enter_context(tqdm(total=args.steps, desc="sampling", disable=True if args.quiet else None))
        options = {"sampler": "ddim", "num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}
        if args.blend:
            stack.enter_context(maps.attached(model))
            options["keep"] = local_blend(maps, [before] * n + [after or before] * n)
        options |= {"latents": torch.cat([noise, noise]), "on_step": lambda step: bar.update()}
        images = minti.sample(model, sources + edits, **options)
    rows |= {"source": images[:n], "edited": images[n:]}
    for name, images in rows.items():
        for i, image in enumerate(images):
            save_png(image, folder / f"{i:02}-{name}.png")
    save_png(page(list(rows.items()), size=model.resolution), folder / "edit.png")
    print(f"wrote {n} images of each of {', '.join(rows)}, and {folder}/edit.png")


if __name__ == "__main__":
    run(main)
