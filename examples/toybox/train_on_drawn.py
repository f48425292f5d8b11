"""A classifier trained on drawn images and tested on true ones: what synthetic data are worth, and what they lack.

    python examples/toybox/train_on_drawn.py

The judge's network is trained in the same way on true images; on as many that the distilled toybox draws in two steps,
from prompts that say everything; and on half of each (`002`, the poster on synthetic MRI images). The labels of a drawn
image are its prompt's. Are they wrong, or do the images lack something? With the stored judge's answers as labels few
are wrong. True images with as many wrong labels show what such labels cost.
"""

from study import Row, Study, options
from support.command_line import automatic_dtype, run, whole

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

import minti
import world
from compare_few_steps import LORAS
from evaluate_toybox import truth
from held_out import described, painted, random_scenes
from measure import Verdict, rates, verdicts
from minti.samplers.few_step import TCD
from networks import Judge
from stages import train_judge

WAYS = ("true", "drawn", "half of each", "half as many true", "drawn, the judge's labels", "true, wrong labels")
HEADS = (*Judge.TOY, *Judge.SCENE)
Labels = dict[str, int]  # of an image, as of `Judge.labels`: -100 where an attribute cannot be seen


def relabelled(judge: Judge, labels: Labels, verdict: Verdict) -> Labels:
    """The judge's answers in place of the labels, but for what cannot be seen."""
    return {name: judge.answers[name].index(verdict[name]) if x >= 0 else x for name, x in labels.items()}


def spoiled(judge: Judge, labels: Labels, like: Labels, rng: np.random.Generator) -> Labels:
    """Labels of which another class is taken wherever `like` differs from them."""
    classes = {name: len(values) for name, values in judge.answers.items()}
    return {
        name: int((x + rng.integers(1, classes[name])) % classes[name]) if like[name] != x else x
        for name, x in labels.items()
    }


def drawn(study: Study, scenes: Sequence[world.Scene]) -> Tensor:
    """The distilled toybox's image of each scene's prompt."""
    with minti.load_lora(study.model, LORAS[2]).merged(study.model):
        prompts = [described(scene) for scene in scenes]
        return study.sample(prompts, num_inference_steps=2, guidance_scale=1, sampler=TCD(gamma=0))


def rows(study: Study) -> Iterator[Row]:
    """How often the labels of drawn images are right, then the test accuracy of a classifier for each way."""
    args, judge = study.args, study.judge
    scenes, half = random_scenes(args.count, args.seed, 81), args.count // 2
    labels = [judge.labels(scene) for scene in scenes]
    true, images = painted(scenes, args.seed, 82), drawn(study, scenes)
    study.show("train_on_drawn", "true", true[:8])
    study.show("train_on_drawn", "drawn", images[:8])
    seen = verdicts(judge, images)
    yield {"way": "(labels of drawn images)"} | rates(zip(seen, [truth(judge, scene) for scene in scenes]))
    judged = [relabelled(judge, *pair) for pair in zip(labels, seen)]
    rng = np.random.default_rng((args.seed, 83))
    ways: dict[str, tuple[Tensor, list[Labels]]] = {
        "true": (true, labels),
        "drawn": (images, labels),
        "half of each": (torch.cat([true[:half], images[half:]]), labels),
        "half as many true": (true[:half], labels[:half]),
        "drawn, the judge's labels": (images, judged),
        "true, wrong labels": (true, [spoiled(judge, *pair, rng) for pair in zip(labels, judged)]),
    }
    tests = random_scenes(args.tests, args.seed, 84)
    test, answers = painted(tests, args.seed, 85), [truth(judge, scene) for scene in tests]
    yield {"way": "(the stored judge)"} | rates(zip(verdicts(judge, test), answers))
    device = study.model.device
    for way in study.bar(args.ways, "ways"):
        pixels, given = ways[way]
        levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        with TemporaryDirectory() as folder, torch.random.fork_rng():
            torch.manual_seed(args.seed)
            fast = automatic_dtype(device.type) == torch.bfloat16
            network = train_judge(Path(folder), levels, args.steps, device, given, fast)
        yield {"way": way} | rates(zip(verdicts(network, test), answers))


def main() -> None:
    """The table, and a page of both kinds of images."""
    steps = (800, 1, "of training, of 64 images each")
    parser = options(__doc__, "outputs/train_on_drawn", WAYS, count=(4_000, 128, "training images"), steps=steps)
    parser.add_argument("--tests", type=whole(1), default=2_000, help="true images to test on")
    parser.set_defaults(batch_size=50)
    study = Study(parser)
    study.table("train_on_drawn", rows(study), {"way": ""} | dict.fromkeys(HEADS, ".1%"))


if __name__ == "__main__":
    run(main)
