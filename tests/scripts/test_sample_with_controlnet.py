"""`sample.py --controlnet --hint`: the picture of diffusers' pipeline, and what is refused."""

import shutil

import diffusers
import numpy as np
import pytest
from helpers import random_controlnet, seeded
from PIL import Image
from running import script_inside

OPTIONS = ("a red cat", "--steps", 3, "--num-images", 1, "--quiet", "--guidance-scale", 7.5, "--dtype", "float32")


@pytest.fixture
def control(opened_by_diffusers, tmp_path):
    """diffusers' ControlNet for the small model, and in a folder."""
    network = random_controlnet(opened_by_diffusers.unet, (16, 32))
    network.save_pretrained(tmp_path / "control")
    return network


@pytest.fixture
def hint(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    picture.save(tmp_path / "hint.png")
    return picture


def test_the_picture_is_diffusers(tiny_folder, pipeline, control, hint, tmp_path):
    pipe = diffusers.StableDiffusionControlNetPipeline(
        **pipeline.components | {"controlnet": control}, requires_safety_checker=False
    )
    expected = pipe(
        "a red cat",
        image=hint,
        height=16,
        width=16,
        generator=seeded(0),
        num_inference_steps=3,
        controlnet_conditioning_scale=0.7,
    ).images[0]
    how = ("--model", tiny_folder, "--hint", tmp_path / "hint.png", "--control-scale", 0.7)
    done = script_inside(
        "sample.py", *OPTIONS, *how, "--controlnet", tmp_path / "control", "--output", tmp_path / "out"
    )
    assert f"{tmp_path / 'control'}: a ControlNet, scale 0.7" in done.stdout
    assert Image.open(tmp_path / "out/00-00.png").tobytes() == expected.tobytes()


def test_a_model_may_bring_its_own(folder, control, hint, tmp_path):
    """`controlnet/` in the model's folder, as the toybox has it; with scale 0 the picture is that without."""
    shutil.copytree(tmp_path / "control", folder / "controlnet")
    drawn = []
    for how in ((), ("--hint", tmp_path / "hint.png"), ("--hint", tmp_path / "hint.png", "--control-scale", 0)):
        script_inside("sample.py", *OPTIONS, "--model", folder, *how, "--output", tmp_path / "out")
        drawn.append(Image.open(tmp_path / "out/00-00.png").tobytes())
    assert drawn[0] == drawn[2] != drawn[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--controlnet", "control"], "--controlnet control needs a hint; give --hint IMAGE, too"),
        (["--hint", "hint.png"], "--hint hint.png needs a ControlNet, and"),
        (
            ["--hint", "hint.png", "--controlnet", "control", "--height", "32"],
            "--hint hint.png is 16 x 16 pixels, and the sample 32 x 16; make them equal",
        ),
        (["--hint", "none.png", "--controlnet", "control"], "none.png: no such image"),
        (["--hint", "hint.png", "--controlnet", "none"], "none is missing; a ControlNet is diffusers' folder"),
        (["--hint", "hint.png", "--controlnet", "control", "--control-scale", "nan"], "nan is not a finite number"),
    ],
)
def test_what_is_refused(tiny_folder, control, hint, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    done = script_inside("sample.py", *OPTIONS, "--model", tiny_folder, *options, check=False)
    assert done.returncode != 0 and message in done.stderr
    assert done.stderr.count("\n") == 1
