"""Trains the bundled toybox model from nothing, with minti's own networks, scheduler and loss.

    python examples/toybox/train_toybox.py --output outputs/toybox --work outputs/toybox-work

Five stages, each resumable: a tiny CLIP (its text half becomes the frozen text encoder), the VAE on random crops, its
decoder on whole pictures, the UNet on the VAE's latents, and the judge, a classifier that measures what is drawn.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from support.command_line import run

import argparse

import torch

from data import draw_pictures
from export import export
from stages import polish_decoder, train_clip, train_judge, train_unet, train_vae

PICTURES = 50_000
STEPS = {"clip": 3_000, "vae": 7_000, "decoder": 1_800, "unet": 56_000, "judge": 6_500}


def main() -> None:
    """All stages in turn, then the export."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=Path("outputs/toybox"), help="where the model goes")
    parser.add_argument(
        "--work", type=Path, default=Path("outputs/toybox-work"), help="checkpoints and sample pictures"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the steps and pictures, for a trial run")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    device, steps = torch.device(args.device), {name: max(1, int(args.scale * n)) for name, n in STEPS.items()}
    torch.manual_seed(0)
    count = max(200, int(args.scale * PICTURES))
    print(f"drawing {count} pictures")
    pictures = draw_pictures(count)
    clip = train_clip(args.work, pictures, steps["clip"], device)
    vae = train_vae(args.work, pictures, steps["vae"], device)
    polish_decoder(args.work, vae, pictures, steps["decoder"], device)
    seen = pictures[: 4 * count // 5]  # latents of all would need more memory
    unet, scaling_factor = train_unet(args.work, vae, clip, seen, steps["unet"], device)
    judge = train_judge(args.work, pictures, steps["judge"], device)
    export(args.output, clip, vae, unet, judge, scaling_factor)
    print(f"wrote the model to {args.output}; examples/toybox/evaluate_toybox.py --model {args.output} measures it")


if __name__ == "__main__":
    run(main)
