"""Classifier guidance and universal guidance of "a photo of a toy", measured by a classifier that did not guide.

    python examples/toybox/guide.py --want green star
    python examples/toybox/guide.py --by noisy-judge --scales 1 3 10
    python examples/toybox/guide.py --by noisy-judge --want green --times 1 --said-scales 1 3 7.5 --count 256 --sets
    python examples/toybox/guide.py --avoid red --scales 10 30 --said-scales 1.5 3

Universal guidance asks the judge through the decoder, classifier guidance one of noisy latents. Who guides is who is
fooled, so the samples are measured by the toybox's CLIP too, which guides nothing. A row is of the prompt alone, one of
each scale, and one of the wish in the prompt for each --said-scales. Guidance by the vague prompt is off, unless
--guidance-scale says so. With --sets, the images of a row are compared with as many painted ones of the target class.

With --avoid, the judge of noisy latents leads away from a class: policy guidance (`003` 37), beside negative prompts.
"""

from study import Row, Study, options
from support.command_line import finite, run, whole

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib
import numpy as np
from PIL import Image
from torch import Tensor

import minti
from compare_sets import compare
from held_out import random_scenes, to_pixels
from measure import verdicts
from minti.denoising import Predict
from minti.evaluation.clip_scores import Clip
from minti.guidance.conditions import in_interval
from minti.guidance.gradients import Guidance, Recurrent, universal_guidance
from minti.images import to_pil
from minti.sampling import conditional
from networks import Judge
from noisy_judge import HEADS, by_noisy_judge, head_of, load_noisy_judge
from painting import draw
from world import COLOURS, SHAPES

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Way = tuple[str, str, dict[str, Any]]  # its name, the prompt, options of `minti.sample`

PROMPT = "a photo of a toy"
SAID = {"main_0": "a photo of a {} toy", "shape_0": "a photo of a {}"}  # what the toybox's CLIP is asked


def judge_loss(model: minti.StableDiffusion, judge: Judge, wish: str) -> Callable[[Tensor], Tensor]:
    """-log p(wish | decoded image), of clean latents (b, 8, 16, 16) -> (b,)."""
    head = head_of(wish)

    def loss(clean: Tensor) -> Tensor:
        logits = judge(model.decode(clean))[head]
        return -logits.log_softmax(dim=1)[:, HEADS[head].index(wish)]

    return loss


def painted(wish: str, count: int, seed: int) -> list[Image.Image]:
    """Photos of one toy of the target class, as the world paints them."""
    scenes = enumerate(random_scenes(100 * count, seed, 51, pair_rate=0))
    found = [(i, s) for i, s in scenes if s.style == "photo" and wish in (s.toys[0].main, s.toys[0].shape)][:count]
    return to_pil(to_pixels([draw(scene, np.random.default_rng((seed, 52, i))) for i, scene in found]))


def seen_by_clip(clip: Clip, images: list[Image.Image], wish: str) -> float:
    """The share of images whose nearest caption among those of all classes is that of the wish."""
    head = head_of(wish)
    likeness = clip.images(images) @ clip.texts([SAID[head].format(answer) for answer in HEADS[head]]).T
    return (likeness.argmax(dim=1) == HEADS[head].index(wish)).float().mean().item()


def measure(judge: Judge, clip: Clip, images: list[Image.Image], wish: str) -> dict[str, float]:
    """Shares of images in which the judge sees the wish, who may have guided; CLIP, who has not; and of photos."""
    seen = verdicts(judge, images)
    return {
        "judge": sum(verdict[head_of(wish)] == wish for verdict in seen) / len(seen),
        "CLIP": seen_by_clip(clip, images, wish),
        "photo": sum(verdict["style"] == "photo" for verdict in seen) / len(seen),
    }


def parse() -> argparse.ArgumentParser:
    """The command line."""
    parser = options(__doc__, "outputs/guide", count=32, steps=20)
    classes = (*COLOURS, *SHAPES)
    parser.add_argument("--want", nargs="+", choices=classes, help="the wishes; default: green star, with --avoid none")
    avoid_help = (
        "lead away from these classes, by the judge of noisy latents; --said-scales are those of negative prompts"
    )
    parser.add_argument("--avoid", nargs="+", choices=classes, default=[], help=avoid_help)
    parser.add_argument("--prompt", default=PROMPT, help="what is sampled")
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
    parser.add_argument("--sets", action="store_true", help="also the toybox FID, KID, precision and recall")
    parser.set_defaults(guidance_scale=1.0, batch_size=32)
    return parser


def way(name: str, prompt: str, scale: float, guidance: Guidance, times: int = 1, negative: str = "") -> Way:
    """By a prompt at a guidance scale, with a further guidance, each step taken so often."""
    given = {"guidance_scale": scale, "guidance": guidance, "negative_prompt": negative}
    return name, prompt, given | {"sampler": Recurrent("ddim", times)}


def none(predict: Predict) -> Predict:
    """No guidance beside the prompt's."""
    return predict


def towards(study: Study, wish: str) -> Iterator[Way]:
    """What the command line names: the prompt alone, by gradients, and said."""
    args, model, plain = study.args, study.model, study.args.guidance_scale
    yield way("the prompt alone", args.prompt, plain, none)
    noisy_judge = load_noisy_judge(args.model) if args.by == "noisy-judge" else None
    for times in args.times:
        for scale in args.scales:
            if noisy_judge:
                guidance = by_noisy_judge(model, noisy_judge, wish, scale, args.below, args.through_unet)
            else:
                back = args.backward_steps, args.backward_rate
                guidance = universal_guidance(model.scheduler, judge_loss(model, study.judge, wish), scale, *back)
            often = f", each step {times} times" if times > 1 else ""
            yield way(f"scale {scale:g}{often}", args.prompt, plain, guidance, times)
    text = SAID[head_of(wish)].format(wish)
    said = model.encode_prompt(text)
    for t in args.said_above:

        def above(predict: Predict, t: int = t) -> Predict:
            told = lambda x, at: conditional(model.unet, said.expand(len(x), -1, -1))(x, at)  # noqa: E731
            return in_interval((t, 1000), told, predict)

        yield way(f"said from {t} up, then not", args.prompt, plain, above)
    for scale in args.said_scales:
        yield way(f"said, guidance {scale:g}", text, scale, none)


def away_from(study: Study, wish: str) -> Iterator[Way]:
    """The prompt alone, policy guidance, the same with the notes' sign, and the class as a negative prompt."""
    args, judge, plain = study.args, load_noisy_judge(study.args.model), study.args.guidance_scale
    by = lambda scale: by_noisy_judge(study.model, judge, wish, scale, args.below, args.through_unet, away=True)  # noqa: E731
    yield way("the prompt alone", args.prompt, plain, none)
    for scale in args.scales:
        yield way(f"policy guidance, scale {scale:g}", args.prompt, plain, by(scale))
    for scale in args.scales[:1]:
        yield way(f"the plus of 003 37, scale {scale:g}", args.prompt, plain, by(-scale))
    for scale in args.said_scales:
        text = SAID[head_of(wish)].format(wish)
        yield way(f"negative prompt, guidance {scale:g}", args.prompt, scale, none, negative=text)


def plot(rows: list[dict[str, object]]) -> plt.Figure:
    """The distance from painted images over the share in which CLIP sees the wish, along the scales of each way."""
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


def rows(study: Study) -> Iterator[Row]:
    """A row of the table and of the page for each wish and way."""
    args = study.args
    for wish in [*args.want, *args.avoid]:
        avoided = wish not in args.want
        real = study.clip.images(painted(wish, args.count, args.seed)) if args.sets and not avoided else None
        for name, prompt, how in (away_from if avoided else towards)(study, wish):
            images = to_pil(study.sample([prompt] * args.count, **how))
            study.show("guide", f"{'not ' * avoided}{wish}: {name}", images[:8])
            sets = {} if real is None else compare(real, study.clip.images(images))
            yield {"wish": "not " * avoided + wish, "way": name} | measure(study.judge, study.clip, images, wish) | sets


def main() -> None:
    """The table and the page."""
    study = Study(parse())
    if study.args.want is None:
        study.args.want = [] if study.args.avoid else ["green", "star"]
    columns = {"wish": "", "way": ""} | dict.fromkeys(("judge", "CLIP", "photo"), ".0%")
    if study.args.sets:
        columns |= dict.fromkeys(("toybox FID", "toybox KID", "precision", "recall"), ".3f")
    found = study.table("guide", rows(study), columns)
    if study.args.sets and study.args.want:
        plot([row for row in found if row["wish"] in study.args.want]).savefig(study.folder / "sets.png", dpi=80)
    print(f"wrote {study.folder}")


if __name__ == "__main__":
    run(main)
