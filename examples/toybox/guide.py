"""Guides "a photo of a toy" by gradients, and measures by a classifier that did not guide.

    python examples/toybox/guide.py --want green star
    python examples/toybox/guide.py --by noisy-judge --scales 1 3 10
    python examples/toybox/guide.py --by noisy-judge --want green --times 1 --said-scales 1 3 7.5 --count 256 --sets

Universal guidance asks the judge through the decoder, classifier guidance one of noisy latents. Who guides is who is
fooled, so what is drawn is told by the toybox's CLIP too, which guides nothing. A row is of the prompt alone, one of
each scale, and one of the wish in the prompt for each --said-scales. Guidance by the vague prompt is off, unless
--guidance-scale says so. With --sets, the pictures of a row are compared with as many painted ones of what is wished.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from support.command_line import arguments, finite, generators, load, make_output, run, whole
from support.pages import page
from support.studies import write_table

import argparse
from collections.abc import Callable, Iterator

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

import minti
from compare_sets import compare
from measure import load_judge, verdicts
from minti.denoising import Predict
from minti.evaluation.clip_scores import Clip
from minti.guidance.conditions import in_interval
from minti.guidance.gradients import Guidance, Recurrent, universal_guidance
from minti.images import to_pixels
from minti.sampling import conditional
from networks import Judge
from noisy_judge import HEADS, by_noisy_judge, head_of, load_noisy_judge
from painting import draw as paint
from toy_clip import load_toy_clip
from world import COLOURS, RESOLUTION, SHAPES, random_scene

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Way = tuple[str, str, float, int, Guidance]  # its name, the prompt, its guidance scale, how often a step is taken

PROMPT = "a photo of a toy"
SAID = {"main_0": "a photo of a {} toy", "shape_0": "a photo of a {}"}  # what the toybox's CLIP is asked


def judge_loss(model: minti.StableDiffusion, judge: Judge, wish: str) -> Callable[[Tensor], Tensor]:
    """-log p(wish | decoded picture), of clean latents (b, 8, 16, 16) -> (b,)."""
    head = head_of(wish)

    def loss(clean: Tensor) -> Tensor:
        logits = judge(model.decode(clean))[head]
        return -logits.log_softmax(dim=1)[:, HEADS[head].index(wish)]

    return loss


def painted(wish: str, count: int, seed: int) -> list[Image.Image]:
    """Photos of one toy that has what is wished, as the world paints them."""
    head, pictures = head_of(wish).removesuffix("_0"), []
    for i in range(100 * count):
        scene = random_scene(np.random.default_rng((seed, 51, i)), pair_rate=0)
        if scene.style == "photo" and getattr(scene.toys[0], head) == wish and len(pictures) < count:
            pixels = paint(scene, np.random.default_rng((seed, 52, i)))
            pictures.append(Image.fromarray((pixels * 255).round().astype(np.uint8)))
    return pictures


def measure(judge: Judge, clip: Clip, pictures: list[Image.Image], wish: str) -> dict[str, float]:
    """Shares of pictures in which the judge sees the wish, who may have guided; CLIP, who has not; and of photos."""
    head = head_of(wish)
    seen = verdicts(judge, torch.stack([to_pixels(picture, RESOLUTION) for picture in pictures]))
    likeness = clip.images(pictures) @ clip.texts([SAID[head].format(answer) for answer in HEADS[head]]).T
    return {
        "judge": sum(verdict[head] == wish for verdict in seen) / len(seen),
        "CLIP": (likeness.argmax(dim=1) == HEADS[head].index(wish)).float().mean().item(),
        "photo": sum(verdict["style"] == "photo" for verdict in seen) / len(seen),
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/guide")
    parser.add_argument("--want", nargs="+", choices=(*COLOURS, *SHAPES), default=["green", "star"])
    by_help = "who guides: the judge, through the decoder, or the judge of noisy latents"
    parser.add_argument("--by", choices=("judge", "noisy-judge"), default="judge", help=by_help)
    parser.add_argument("--scales", type=finite, nargs="*", default=[1, 3, 10], help="of the gradient")
    parser.add_argument("--below", type=whole(1), default=800, help="of the noisy judge: the timesteps that it guides")
    parser.add_argument("--through-unet", action="store_true", help="ask it what the model makes of the latents")
    parser.add_argument("--times", type=whole(1), nargs="+", default=[1], help="that each step is taken")
    parser.add_argument("--backward-steps", type=whole(0), default=0, help="of backward guidance, in every step")
    parser.add_argument("--backward-rate", type=finite, default=0.1, help="of backward guidance")
    said_help = "guidance scales of the prompt that says the wish"
    parser.add_argument("--said-scales", type=finite, nargs="*", default=[1], help=said_help)
    above_help = "timesteps down to which the prompt says the wish: when is it decided?"
    parser.add_argument("--said-above", type=whole(0), nargs="*", default=[], help=above_help)
    parser.add_argument("--sets", action="store_true", help="also the toybox FID, precision and recall")
    parser.add_argument("--count", type=whole(1), default=32, help="pictures of each row")
    parser.add_argument("--steps", type=whole(1), default=20, help="denoising steps")
    parser.set_defaults(guidance_scale=1.0)
    return parser.parse_args()


def ways(args: argparse.Namespace, model: minti.StableDiffusion, judge: Judge, wish: str) -> Iterator[Way]:
    """What the command line names: the prompt alone, by gradients, and said."""
    plain = args.guidance_scale
    yield "the prompt alone", PROMPT, plain, 1, lambda predict: predict
    noisy_judge = load_noisy_judge(args.model) if args.by == "noisy-judge" else None
    for times in args.times:
        for scale in args.scales:
            if noisy_judge:
                guidance = by_noisy_judge(model, noisy_judge, wish, scale, args.below, args.through_unet)
            else:
                back = args.backward_steps, args.backward_rate
                guidance = universal_guidance(model.scheduler, judge_loss(model, judge, wish), scale, *back)
            often = f", each step {times} times" if times > 1 else ""
            yield f"scale {scale:g}{often}", PROMPT, plain, times, guidance
    said = model.encode_prompt(SAID[head_of(wish)].format(wish))
    for t in args.said_above:

        def above(predict: Predict, t: int = t) -> Predict:
            told = lambda x, at: conditional(model.unet, said.expand(len(x), -1, -1))(x, at)  # noqa: E731
            return in_interval((t, 1000), told, predict)

        yield f"said from {t} up, then not", PROMPT, plain, 1, above
    for scale in args.said_scales:
        yield f"said, guidance {scale:g}", SAID[head_of(wish)].format(wish), scale, 1, lambda predict: predict


def draw(args: argparse.Namespace, model: minti.StableDiffusion, way: Way, batch_size: int = 32) -> list[Image.Image]:
    """A row's pictures; each row begins with the same noises."""
    _, prompt, guidance_scale, times, guidance = way
    pictures: list[Image.Image] = []
    while left := args.count - len(pictures):
        pictures += minti.sample(
            model,
            [prompt] * min(left, batch_size),
            num_inference_steps=args.steps,
            sampler=Recurrent("ddim", times),
            guidance_scale=guidance_scale,
            generator=generators(args.seed + len(pictures), min(left, batch_size)),
            guidance=guidance,
        )
    return pictures


def plot(rows: list[dict[str, object]]) -> plt.Figure:
    """The distance from painted pictures over the share in which CLIP sees the wish, along the scales of each way."""
    wishes = list(dict.fromkeys(row["wish"] for row in rows))
    figure, axes = plt.subplots(1, len(wishes), figsize=(4.2 * len(wishes), 3), squeeze=False)
    for axis, wish in zip(axes[0], wishes):
        for label, said in (("classifier guidance", False), ("classifier-free", True)):
            line = [r for r in rows if r["wish"] == wish and str(r["way"]).startswith("said, ") == said]
            at = [100 * row["CLIP"] for row in line], [row["toybox FID"] for row in line]
            axis.plot(*at, "o-", label=label)
            for x, y, row in zip(*at, line):
                axis.annotate(str(row["way"]).split()[-1].replace("alone", "0"), (x, y), fontsize=8)
        axis.set(title=wish, xlabel="seen by CLIP, %", ylabel="toybox FID", ylim=(0, None))
        axis.legend(fontsize=8)
    figure.tight_layout()
    return figure


def main() -> None:
    """A table and a page, a row for each way."""
    args = parse()
    folder, model = make_output(args.output), load(args)
    model.freeze()
    judge, clip = load_judge(args.model).requires_grad_(False), load_toy_clip(model, args.model)
    rows: list[dict[str, object]] = []
    shown: list[tuple[str, list[Image.Image]]] = []
    names = ("judge", "CLIP", "photo") + (("toybox FID", "precision", "recall") if args.sets else ())
    print(f"| {args.count} pictures each | | {' | '.join(names)} |\n{'|---' * (2 + len(names))}|", flush=True)
    for wish in args.want:
        real = clip.images(painted(wish, args.count, args.seed)) if args.sets else None
        for way in ways(args, model, judge, wish):
            pictures = draw(args, model, way)
            numbers = measure(judge, clip, pictures, wish)
            numbers |= {} if real is None else compare(real, clip.images(pictures))
            rows.append({"wish": wish, "way": way[0]} | numbers)
            shown.append((f"{wish}: {way[0]}", pictures[:8]))
            cells = (f"{100 * numbers[name]:.0f}" if name in names[:3] else f"{numbers[name]:.3f}" for name in names)
            print(f"| {wish} | {way[0]} | {' | '.join(cells)} |", flush=True)
            write_table(folder / "guide.csv", rows)
    page(shown, size=64).save(folder / "guide.png")
    if args.sets:
        plot(rows).savefig(folder / "sets.png", dpi=80)
    print(f"wrote {folder}")


if __name__ == "__main__":
    run(main)
