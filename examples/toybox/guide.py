"""Guides "a photo of a toy" by gradients, and measures by a classifier that did not guide.

    python examples/toybox/guide.py --want green star
    python examples/toybox/guide.py --by noisy-judge --scales 5 10 20

Universal guidance asks the judge through the decoder, classifier guidance one of noisy latents. Who guides is who is
fooled, so what is drawn is told by the toybox's CLIP too, which guides nothing. A row is of the prompt alone, one of
each scale, and one of the wish in the prompt. Guidance by the prompt is off, unless --guidance-scale says so.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from support.command_line import arguments, finite, load, make_output, run, whole
from support.pages import page
from support.studies import write_table

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

import minti
from measure import load_judge, verdicts
from minti.diffusion.gradients import Guidance, Recurrent, classifier_guidance, universal_guidance
from minti.diffusion.guidance import within
from minti.evaluation.clip_scores import Clip
from minti.images import to_pixels
from networks import Judge
from noisy_judge import NoisyJudge, load_noisy_judge
from toy_clip import load_toy_clip
from world import COLOURS, RESOLUTION, SHAPES

PROMPT = "a photo of a toy"
HEADS = {"main_0": tuple(COLOURS), "shape_0": SHAPES}
SAID = {"main_0": "a photo of a {} toy", "shape_0": "a photo of a {}"}  # what the toybox's CLIP is asked


def head_of(wish: str) -> str:
    """The judge's head that knows the answer."""
    return next(head for head, answers in HEADS.items() if wish in answers)


def judge_loss(model: minti.StableDiffusion, judge: Judge, wish: str) -> Callable[[Tensor], Tensor]:
    """-log p(wish | decoded picture), of clean latents (b, 8, 16, 16) -> (b,)."""
    head = head_of(wish)

    def loss(clean: Tensor) -> Tensor:
        logits = judge(model.decode(clean))[head]
        return -logits.log_softmax(dim=1)[:, HEADS[head].index(wish)]

    return loss


def by_noisy_judge(model: minti.StableDiffusion, judge: NoisyJudge, wish: str, scale: float, below: int) -> Guidance:
    """Classifier guidance in the timesteps below a limit: where there is only noise, the judge can but guess."""
    guidance = classifier_guidance(
        model.scheduler, lambda latents, t: judge.log_probability(latents, t, {head_of(wish): wish}), scale
    )
    return lambda predict: within((0, below - 1), guidance(predict), predict)


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


def main() -> None:
    """A table and a page, a row for each way."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/guide")
    parser.add_argument("--want", nargs="+", choices=(*COLOURS, *SHAPES), default=["green", "star"])
    by_help = "who guides: the judge, through the decoder, or the judge of noisy latents"
    parser.add_argument("--by", choices=("judge", "noisy-judge"), default="judge", help=by_help)
    parser.add_argument("--scales", type=finite, nargs="+", default=[1, 3, 10], help="of the gradient")
    parser.add_argument("--below", type=whole(1), default=700, help="of the noisy judge: the timesteps that it guides")
    parser.add_argument("--times", type=whole(1), nargs="+", default=[1, 4], help="that each step is taken; 1: once")
    parser.add_argument("--backward-steps", type=whole(0), default=0, help="of backward guidance, in every step")
    parser.add_argument("--backward-rate", type=finite, default=0.1, help="of backward guidance")
    parser.add_argument("--count", type=whole(1), default=32, help="pictures of each row")
    parser.add_argument("--steps", type=whole(1), default=30, help="denoising steps")
    parser.set_defaults(guidance_scale=1.0)
    args = parser.parse_args()
    folder, model = make_output(args.output), load(args)
    model.freeze()
    judge, clip = load_judge(args.model).requires_grad_(False), load_toy_clip(model, args.model)
    noisy_judge = load_noisy_judge(args.model) if args.by == "noisy-judge" else None
    rows: list[dict[str, object]] = []
    shown: list[tuple[str, list[Image.Image]]] = []

    def draw(name: str, wish: str, prompt: str, times: int = 1, guidance: Guidance = lambda predict: predict) -> None:
        pictures = minti.sample(
            model,
            [prompt] * args.count,
            num_inference_steps=args.steps,
            sampler=Recurrent("ddim", times),
            guidance_scale=args.guidance_scale,
            generator=torch.Generator().manual_seed(args.seed),
            guidance=guidance,
        )
        rows.append({"wish": wish, "way": name} | measure(judge, clip, pictures, wish))
        shown.append((f"{wish}: {name}", pictures[:8]))
        shares = " | ".join(f"{100 * rows[-1][key]:.0f}" for key in ("judge", "CLIP", "photo"))
        print(f"| {wish} | {name} | {shares} |")

    print(f"| {args.count} pictures each | | judge | CLIP | photo |\n{'|---' * 5}|")
    for wish in args.want:
        loss, rate = judge_loss(model, judge, wish), args.backward_rate
        draw("the prompt alone", wish, PROMPT)
        for times in args.times:
            for scale in args.scales:
                if noisy_judge:
                    guidance = by_noisy_judge(model, noisy_judge, wish, scale, args.below)
                else:
                    guidance = universal_guidance(model.scheduler, loss, scale, args.backward_steps, rate)
                often = f", each step {times} times" if times > 1 else ""
                draw(f"scale {scale:g}{often}", wish, PROMPT, times, guidance)
        draw("said in the prompt", wish, SAID[head_of(wish)].format(wish))
    write_table(folder / "guide.csv", rows)
    page(shown, size=64).save(folder / "guide.png")
    print(f"wrote {folder}")


if __name__ == "__main__":
    run(main)
