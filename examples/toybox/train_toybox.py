"""Trains the bundled toybox model from scratch, with minti's own networks, scheduler and training loop.

    python examples/toybox/train_toybox.py --output outputs/toybox --work outputs/toybox-work

Five stages, each resumable: a tiny CLIP (its text half becomes the frozen text encoder), the VAE on random crops, its
decoder on whole images, the UNet on the VAE's latents, and the judge, a classifier that evaluates the samples.
"""

import examples_on_path
from support.command_line import run

import argparse
import copy
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import minti
from data import draw_pictures
from minti.configs import ModelDefaults
from networks import Judge, ToyCLIP, save_weights
from stages import polish_decoder, train_clip, train_judge, train_unet, train_vae

IMAGES = 50_000
STEPS = {"clip": 3_000, "vae": 7_000, "decoder": 1_800, "unet": 56_000, "judge": 6_500}
# The toybox knows few words; its templates are true of any image of a toy.
DEFAULTS = ModelDefaults(
    half_precision=False,
    guidance_scale=5.0,
    batch_size=8,
    lora_learning_rate=4e-3,
    network_learning_rate=2e-4,
    tuning_steps=100,
    class_pictures=64,
    initializer_token="toy",
    templates=("a photo of a {}", "a {}", "{}"),
    prompts=(
        "a photo of a {} on a teal background",
        "a small {} on the left on a sand background",
        "a big {} at the bottom",
        "a cartoon of a {}",
        "a pixel art picture of a {} on a navy background",
        "a sketch of a {}",
        "a photo of a {} next to a white heart with a red spot",
    ),
)


def export(folder: Path, model: minti.StableDiffusion, clip: ToyCLIP, judge: Judge) -> None:
    """Saves the model in SD v1.4's folder layout, in float16; in `evaluation/` the networks that evaluate it."""
    halves = {name: copy.deepcopy(getattr(model, name)).half() for name in ("unet", "vae", "text_encoder")}
    with TemporaryDirectory() as temporary:
        saved = Path(temporary) / "model"
        replace(model, **halves, defaults=DEFAULTS).save_pretrained(saved)
        shutil.copytree(saved, folder, dirs_exist_ok=True)
    image_half = {key: value for key, value in clip.state_dict().items() if not key.startswith("text_model.")}
    save_weights(folder / "evaluation/clip.safetensors", image_half)
    save_weights(folder / "evaluation/judge.safetensors", judge.state_dict())


def main() -> None:
    """All stages in turn, then the export."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=Path("outputs/toybox"), help="folder for the model")
    parser.add_argument("--work", type=Path, default=Path("outputs/toybox-work"), help="checkpoints and sample images")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the steps and images, for a trial run")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    device, steps = torch.device(args.device), {name: max(1, int(args.scale * n)) for name, n in STEPS.items()}
    torch.manual_seed(0)
    count = max(200, int(args.scale * IMAGES))
    print(f"rendering {count} images")
    images = draw_pictures(count)
    clip = train_clip(args.work, images, steps["clip"], device)
    vae = train_vae(args.work, images, steps["vae"], device)
    polish_decoder(args.work, vae, images, steps["decoder"], device)
    # latents of all would need more memory
    model = train_unet(args.work, vae, clip, images[: 4 * count // 5], steps["unet"], device)
    judge = train_judge(args.work, images, steps["judge"], device)
    export(args.output, model, clip, judge)
    print(f"wrote the model to {args.output}; examples/toybox/evaluate_toybox.py --model {args.output} evaluates it")


if __name__ == "__main__":
    run(main)
