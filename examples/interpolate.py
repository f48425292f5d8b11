"""Interpolation between two images: of their prompts, their noise, or two learned words, by lerp and by slerp.

python examples/interpolate.py "a photo of a big red star" "a photo of a big green star"
python examples/interpolate.py "a photo of a {}" --words FIRST.safetensors SECOND.safetensors
"""

from support.command_line import arguments, generators, load, make_output, run, whole
from support.pages import page

import torch
from PIL import Image
from torch import Tensor

import minti
from minti.embeddings import read_embeddings
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


def between_prompts(
    model: minti.StableDiffusion, prompts: list[str], here: Tensor, there: Tensor, shares: list[float]
) -> dict:
    """Contexts and noises of each kind of interpolation between two prompts and two noises."""
    first, last = (model.encode_prompt(prompt) for prompt in prompts)
    # Prompt arithmetic: the difference of the two encodings, added to the first, and beyond the second.
    differences = [first + 1.5 * share * (last - first) for share in shares]
    same = len(shares)
    return {
        "encoded prompts": ([lerp(first, last, share) for share in shares], [here] * same),
        "noise, linear": ([first] * same, [lerp(here, there, share) for share in shares]),
        "noise, spherical": ([first] * same, [slerp(here, there, share) for share in shares]),
        "text difference": (differences, [here] * same),
    }


def between_words(model: minti.StableDiffusion, files: list[str], prompt: str, shares: list[float]) -> dict:
    """The prompt's contexts with vectors between those of two learned words, {kind: a list of (1, m, d)}: on the line
    between them, whose middle is short, and on the sphere (directional textual inversion, arXiv 2512.13672)."""
    read = [read_embeddings(path) for path in files]
    for path, words in zip(files, read):
        if len(words) > 1:
            raise ValueError(f"{path} holds {len(words)} words; give a file of one")
    (first, second), contexts = (next(iter(words.values())) for words in read), {}  # k d
    if first.shape != second.shape:
        shapes = " and ".join(f"{len(vectors)} x {vectors.shape[1]}" for vectors in (first, second))
        raise ValueError(f"{files[0]} and {files[1]} hold {shapes} numbers; between them words need the same")
    for kind, mix in (("words, linear", lerp), ("words, spherical", slerp)):
        names = [f"<{kind[7:]}-{i}>" for i in range(len(shares))]
        for name, share in zip(names, shares):
            model.add_word(name, mix(first, second, share))
        contexts[kind] = [model.encode_prompt(prompt.replace("{}", name)) for name in names]
    return contexts


@torch.no_grad()
def main() -> None:
    """Writes a page with a row for each kind of interpolation, from one image to the other."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/interpolation")
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="of the first and the last image, or one with {}")
    parser.add_argument("--words", nargs=2, metavar="FILE", help="of two learned words, which take the place of {}")
    parser.add_argument("--columns", type=whole(2), default=11, help="images in a row, both ends included")
    parser.add_argument("--steps", type=whole(1), default=20, help="DPM-Solver++ steps")
    args = parser.parse_args()
    if len(args.prompts) != (1 if args.words else 2) or (args.words and "{}" not in args.prompts[0]):
        parser.error("give two prompts, or one with {} and --words FILE FILE")
    folder, model = make_output(args.output), load(args)
    shares = [i / (args.columns - 1) for i in range(args.columns)]
    shape = model.latents_shape(1)
    here, there = (randn(shape, one, model.device, model.dtype) for one in generators(args.seed, 2))
    if args.words:
        words = between_words(model, args.words, args.prompts[0], shares)
        rows = {kind: (contexts, [here] * args.columns) for kind, contexts in words.items()}
    else:
        rows = between_prompts(model, args.prompts, here, there, shares)
    options = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale, "sampler": "dpm-solver++"}
    images = [
        (label, minti.sample(model, torch.cat(prompts), latents=torch.cat(noises), **options))
        for label, (prompts, noises) in rows.items()
    ]
    for label, (_, noises) in rows.items():
        if label.startswith("noise"):
            print(f"{label}: standard deviation half way {noises[args.columns // 2].std():.2f}")
    even = images if args.words else images[:-1]  # the rest goes beyond the second prompt
    whole_page = page(even, size=96, headings=[f"{share:.2f}" for share in shares])
    if not args.words:
        above, below = whole_page, page(images[-1:], size=96, headings=[f"{1.5 * share:.2f}" for share in shares])
        whole_page = Image.new("RGB", (above.width, above.height + below.height))
        whole_page.paste(above, (0, 0))
        whole_page.paste(below, (0, above.height))
    save_png(whole_page, folder / "interpolation.png")
    print(f"wrote {folder}/interpolation.png")


if __name__ == "__main__":
    run(main)
