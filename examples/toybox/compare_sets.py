"""The toybox FID, precision, recall and CLIP score of what the model draws, over the guidance scale.

    python examples/toybox/compare_sets.py

On the features of the toybox's own CLIP, so these numbers compare with each other and with nothing else. Before them
come the checks of the lecture notes (`002`, chapter 15): true pictures against other true ones, and against noise.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from support.command_line import arguments, load, make_output, run, whole
from support.drawing import Artist
from support.studies import write_table

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import minti
import painting
import world
from minti.evaluation.clip_scores import Clip
from minti.evaluation.distribution import fit_gaussian, frechet_distance, precision_and_recall
from toy_clip import load_toy_clip


def true_pictures(count: int, seed: int) -> tuple[list[Image.Image], list[str]]:
    """Pictures that the world draws, with a caption each."""
    pictures, captions = [], []
    for i in range(count):
        scene = world.random_scene(np.random.default_rng((seed, 31, i)))
        drawn = painting.draw(scene, np.random.default_rng((seed, 32, i)))
        pictures.append(Image.fromarray((drawn * 255).round().astype(np.uint8)))
        captions.append(world.caption(scene, np.random.default_rng((seed, 33, i))))
    return pictures, captions


def compare(real: Tensor, drawn: Tensor) -> dict[str, float]:
    """Three numbers for two sets of features, (n, d) each."""
    precision, recall = precision_and_recall(real, drawn)
    distance = frechet_distance(fit_gaussian(real), fit_gaussian(drawn))
    return {"toybox FID": distance, "precision": precision, "recall": recall}


def clip_score(clip: Clip, pictures: Sequence[Image.Image], captions: Sequence[str]) -> float:
    """The mean cosine of pictures with their own captions."""
    return (clip.images(pictures) * clip.texts(captions)).sum(dim=1).mean().item()


def main() -> None:
    """The checks, then one row for each scale."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/sets")
    parser.add_argument("--count", type=whole(1), default=256, help="pictures of each set")
    parser.add_argument("--steps", type=whole(1), default=20, help="denoising steps")
    parser.add_argument("--scales", type=float, nargs="+", default=[1, 2, 3, 5, 7.5, 10, 15])
    parser.set_defaults(sampler="dpm-solver++", batch_size=32)
    args = parser.parse_args()
    folder, model = make_output(args.output), load(args)
    clip, artist = load_toy_clip(model, args.model), Artist(args, model)
    real, _ = true_pictures(args.count, args.seed)
    others, captions = true_pictures(args.count, args.seed + 1)
    noise = [
        Image.fromarray(np.random.default_rng(i).integers(256, size=(64, 64, 3), dtype=np.uint8))
        for i in range(args.count)
    ]
    features = clip.images(real)
    rows: list[dict[str, object]] = [
        {"set": "the same true pictures"} | compare(features, features),
        {"set": "other true pictures"}
        | compare(features, clip.images(others))
        | {"CLIP score": clip_score(clip, others, captions)},
        {"set": "noise"} | compare(features, clip.images(noise)) | {"CLIP score": clip_score(clip, noise, captions)},
    ]
    for scale in tqdm(args.scales, "scales", disable=artist.quiet):
        drawn = draw_each(artist, captions, scale)
        score = {"CLIP score": clip_score(clip, drawn, captions)}
        rows.append({"set": f"drawn, guidance {scale:g}"} | compare(features, clip.images(drawn)) | score)
    write_table(folder / "sets.csv", rows)
    names = ("toybox FID", "precision", "recall", "CLIP score")
    print(f"| {args.count} pictures | {' | '.join(names)} |\n{'|---' * 5}|")
    for row in rows:
        print(f"| {row['set']} | " + " | ".join(f"{row[name]:.3f}" if name in row else "" for name in names) + " |")


def draw_each(artist: Artist, captions: Sequence[str], scale: float) -> list[Image.Image]:
    """A picture for each caption, each with noise of its own."""
    args, pictures = artist.args, []
    for start in range(0, len(captions), args.batch_size):
        part = list(captions[start : start + args.batch_size])
        pictures += minti.sample(
            artist.model,
            part,
            num_inference_steps=args.steps,
            sampler=args.sampler,
            guidance_scale=scale,
            generator=torch.Generator().manual_seed(args.seed + start),
        )
    return pictures


if __name__ == "__main__":
    run(main)
