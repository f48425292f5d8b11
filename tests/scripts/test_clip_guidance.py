"""CLIP guidance, `sample.py --clip-prompt`: the text comes nearer, and what cannot be is refused in one line."""

import torch
from helpers import seeded
from PIL import Image
from running import ROOT, script_inside

import minti
from minti.guidance.clip import clip_guidance
from minti.images import to_pixels
from minti.sampling import conditional

OPTIONS = ("a photo of a toy", "--steps", "2", "--num-images", "1", "--quiet")


def test_a_guided_prediction_is_nearer_to_the_text():
    from toy_clip import load_toy_clip

    model = minti.StableDiffusion.from_pretrained()
    clip, text = load_toy_clip(model, minti.TOYBOX), "a photo of a green toy"
    unlike = clip.unlikeness(text)
    with Image.open(ROOT / "examples" / "concepts" / "white-cross-blue-spot" / "0.png") as picture:
        latents = model.scale(model.encode(to_pixels(picture, 64)[None]).mean)
    latents = model.scheduler.add_noise(latents, torch.randn(2, *latents.shape[1:], generator=seeded()), 300)
    predict = conditional(model.unet, model.encode_prompt(["a photo of a toy"] * 2))
    found = []
    for scale in (0.0, 3.0):
        guided = clip_guidance(model, clip, text, scale)(predict)
        clean, _ = model.scheduler.clean_and_noise(guided(latents, 300), latents, 300)
        found.append(unlike(model.decode(clean)))
    assert (found[1] < found[0]).all()


def test_the_command_with_the_toybox_and_with_a_clip_of_transformers(tmp_path, clip_folder):
    drawn = []
    text = ("--clip-prompt", "a red star")
    ways = {"plain": (), "own": text, "other": (*text, "--clip", clip_folder), "sag": (*text, "--sag", "0.7")}
    for name, more in ways.items():
        script_inside("sample.py", *OPTIONS, *more, "--output", tmp_path / name)
        drawn.append((tmp_path / name / "00-00.png").read_bytes())
    assert len(set(drawn)) == 4


def test_what_cannot_be_guided_is_said(tmp_path):
    for more, message in (
        (("--clip-guidance-scale", "3"), "--clip and --clip-guidance-scale say how to go towards --clip-prompt"),
        (("--clip-prompt", "a star", "--clip", tmp_path), f"cannot reach the CLIP model {tmp_path}"),
    ):
        done = script_inside("sample.py", *OPTIONS, *more, "--output", tmp_path / "out", check=False)
        assert done.returncode == 1 and message in done.stderr and "\n" not in done.stderr.strip()
