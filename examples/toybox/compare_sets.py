"""FID, KID, precision, recall, CLIP score and Inception Score of the model's samples, over the guidance scale.

    python examples/toybox/compare_sets.py

On the features of the toybox's CLIP, and the Inception Score on the judge's probabilities of the shape, so these
numbers compare with each other and with nothing else. Before them come the checks of the lecture notes (`002`, chapter
15): true images against other true ones, and against noise.
"""

from study import Row, Study, options
from support.command_line import run

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

import world
from held_out import painted, random_scenes
from minti.evaluation.distribution import (
    fit_gaussian,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_and_recall,
)
from minti.images import from_bytes, to_pil

COLUMNS = {"set": ""} | dict.fromkeys(
    ("toybox FID", "toybox KID", "precision", "recall", "CLIP score", "Inception Score"), ".3f"
)


def true_images(count: int, seed: int) -> tuple[Tensor, list[str]]:
    """Images that the world paints, with a caption each."""
    scenes = random_scenes(count, seed, 31)
    captions = [world.caption(scene, np.random.default_rng((seed, 33, i))) for i, scene in enumerate(scenes)]
    return painted(scenes, seed, 32), captions


def compare(real: Tensor, drawn: Tensor) -> dict[str, float]:
    """FID, KID, precision and recall of two sets of features, (n, d) each, of length one; KID's have length √d, so that
    their numbers have a variance of about 1, as it expects."""
    precision, recall = precision_and_recall(real, drawn)
    distance = frechet_distance(fit_gaussian(real), fit_gaussian(drawn))
    kernel = kernel_distance(real * real.shape[1] ** 0.5, drawn * real.shape[1] ** 0.5)
    return {"toybox FID": distance, "toybox KID": kernel, "precision": precision, "recall": recall}


def rows(study: Study) -> Iterator[Row]:
    """The checks, then one row for each scale."""
    count, seed = study.args.count, study.args.seed
    features = study.clip.images(to_pil(true_images(count, seed)[0]))
    others, captions = true_images(count, seed + 1)
    texts = study.clip.texts(captions)
    noise = np.stack([np.random.default_rng(i).integers(256, size=(64, 64, 3), dtype=np.uint8) for i in range(count)])

    def row(name: str, pixels: Tensor) -> Row:
        seen = study.clip.images(to_pil(pixels))
        score = (seen * texts).sum(dim=1).mean().item()  # the cosines of images and their own captions
        with torch.no_grad():
            shapes = study.judge(pixels.to(study.model.device).float().clamp(-1, 1))["shape_0"].softmax(dim=1)
        return (
            {"set": name} | compare(features, seen) | {"CLIP score": score, "Inception Score": inception_score(shapes)}
        )

    yield {"set": "the same true images"} | compare(features, features)
    yield row("other true images", others)
    yield row("noise", from_bytes(torch.from_numpy(noise)).permute(0, 3, 1, 2))
    for scale in study.bar(study.args.scales, "scales"):
        # One generator draws the noise of a whole batch.
        each = {"each": lambda some: {"generator": torch.Generator().manual_seed(seed + some.start)}}
        yield row(f"sampled, guidance {scale:g}", study.sample(captions, guidance_scale=scale, **each))


def main() -> None:
    """The table."""
    parser = options(__doc__, "outputs/sets", count=256, steps=20)
    parser.add_argument("--scales", type=float, nargs="*", default=[1, 2, 3, 5, 7.5, 10, 15], help="guidance scales")
    parser.set_defaults(sampler="dpm-solver++", batch_size=32)
    study = Study(parser)
    study.table("sets", rows(study), COLUMNS)


if __name__ == "__main__":
    run(main)
