"""Outlines and overlaps of the toybox's world, and that its ControlNet does what is claimed of it."""

import csv
import json

import diffusers
import pytest
import torch
from helpers import seeded
from running import script_inside
from safetensors.torch import load_file

import minti
from evaluate_controlnet import CONTROLNET, Trials
from measure import load_judge
from minti.adapters.controlnet import ControlNet
from minti.formats.image_files import open_image
from outlines import drawn_masks, hints, overlap

WEIGHTS = CONTROLNET / "diffusion_pytorch_model.safetensors"


def disc(radius, x=0.0):
    grid = torch.arange(64) + 0.5 - 32
    return ((grid[None, :] - x).hypot(grid[:, None]) < radius).float()[None, None]


def test_overlap_of_discs():
    """Concentric ones of radii r and R: (r / R)²; the same: 1; apart: 0; nothing at all: 0."""
    assert overlap(disc(20), disc(20)) == 1
    assert overlap(disc(10), disc(20)).item() == pytest.approx(0.25, abs=0.01)
    assert overlap(disc(10, -15), disc(10, 15)) == overlap(disc(0), disc(0)) == 0


def test_a_hint_is_the_rim():
    """Of a disc of radius r about 16 r pixels, two for each that its rim goes sideways or up and down; no others."""
    line = hints(disc(20))
    assert line.shape == (1, 3, 64, 64) and line.unique().tolist() == [0, 1]
    assert line[0, 0].sum().item() == pytest.approx(16 * 20, rel=0.05)
    assert not line[disc(18).expand_as(line) > 0].any() and not line[disc(22).expand_as(line) == 0].any()


def test_the_measure_on_the_world_s_own_pictures():
    """The outline is found again from the colours alone, shadows notwithstanding."""
    trials = Trials(24)
    overlaps = overlap(drawn_masks(trials.true_pictures()), trials.wanted)
    assert overlaps.mean() > 0.94 and overlaps.min() > 0.85


def test_the_bundled_one_is_small_and_fits():
    assert WEIGHTS.stat().st_size < 6_000_000
    assert {tensor.dtype for tensor in load_file(WEIGHTS).values()} == {torch.float16}
    assert json.loads((CONTROLNET / "config.json").read_text(encoding="utf-8"))["_class_name"] == "ControlNetModel"


def test_it_draws_where_the_outline_is():
    """What `examples/controlnet.md` says of 48 pictures, on twelve: one of each held-out toy, with the same noise."""
    model = minti.StableDiffusion.from_pretrained()
    control, judge, trials = ControlNet.from_pretrained(CONTROLNET, model), load_judge(minti.TOYBOX), Trials(12)
    options = {"num_inference_steps": 10, "sampler": "dpm-solver++"}
    alone = trials.measure(judge, trials.draw(model, None, trials.prompts(), **options))
    drawn = trials.measure(judge, trials.draw(model, control, trials.prompts(), **options))
    unsaid = trials.measure(judge, trials.draw(model, control, trials.prompts(shape=False), **options))
    assert alone["overlap"] < 0.5 and drawn["overlap"] > 0.85 and unsaid["overlap"] > 0.8
    assert drawn["all"] >= 10 / 12
    assert unsaid["shape"] >= 8 / 12  # one of eight would be chance


def test_diffusers_draws_the_same_with_it():
    """Byte for byte, in float32."""
    network = diffusers.ControlNetModel.from_pretrained(CONTROLNET, torch_dtype=torch.float32)
    pipe = diffusers.StableDiffusionControlNetPipeline.from_pretrained(
        minti.TOYBOX, controlnet=network, safety_checker=None, torch_dtype=torch.float32
    )
    pipe.scheduler = diffusers.DDIMScheduler.from_pretrained(
        minti.TOYBOX, subfolder="scheduler", set_alpha_to_one=False
    )
    pipe.set_progress_bar_config(disable=True)
    model, trials = minti.StableDiffusion.from_pretrained(), Trials(2)
    control = ControlNet.from_pretrained(CONTROLNET, model)
    control.hint = hints(trials.wanted)
    options = {"num_inference_steps": 10, "guidance_scale": 5.0}
    expected = pipe(trials.prompts(), image=list(control.hint), generator=seeded(), **options).images
    with control.attached(model):
        drawn = minti.sample(model, trials.prompts(), generator=seeded(), sampler="ddim", **options)
    assert all(got.tobytes() == picture.tobytes() for got, picture in zip(drawn, expected, strict=True))


def test_the_scripts(tmp_path):
    """Training writes a ControlNet and its progress, the evaluation a table, a page and its numbers."""
    args = ("--steps", 2, "--pictures", 20, "--look-every", 2, "--look-at", 2, "--quiet")
    script_inside("toybox/train_controlnet.py", *args, "--output", tmp_path / "control")
    (row,) = csv.DictReader((tmp_path / "control/progress.csv").open(encoding="utf-8"))
    assert row["step"] == "2" and 0 <= float(row["overlap"]) <= 1
    first = (tmp_path / "control/diffusion_pytorch_model.safetensors").read_bytes()
    script_inside("toybox/train_controlnet.py", *args, "--seed", 1, "--output", tmp_path / "control")
    assert (tmp_path / "control/diffusion_pytorch_model-before.safetensors").read_bytes() == first
    how = ("--controlnet", tmp_path / "control", "--count", 2, "--steps", 2, "--quiet", "--output", tmp_path / "out")
    done = script_inside("toybox/evaluate_controlnet.py", *how)
    assert done.stdout.count("\n| ") == 5
    measures = json.loads((tmp_path / "out/measures.json").read_text(encoding="utf-8"))
    assert measures["the world's own images"]["overlap"] > 0.85
    assert open_image(tmp_path / "out/page.png").height == 4 * 66 - 2
