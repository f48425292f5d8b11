"""OpenVINO in the UNet's place: torch's images, and one line where it cannot be."""

from support.openvino_engine import OpenVINO

import json
import sys

import pytest
import torch
from PIL import Image, ImageChops
from running import script, script_inside

import minti
from minti.speed.deep_cache import DeepCache
from minti.speed.packed import Packed

PARTS = {
    "a LoRA": lambda model: minti.LoRA(model),
    "DeepCache": lambda model: DeepCache(2),
    "packed weights": lambda model: Packed(),
}


def test_without_the_package_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    done = script_inside("sample.py", "a toy", "--engine", "openvino", "--output", tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: OpenVINO is not installed; pip install openvino\n"


@pytest.fixture(scope="module")
def installed():
    """The package, which is optional."""
    return pytest.importorskip("openvino")


def drawn(model, **options):
    """Latents of two pictures after few steps."""
    options = {"sampler": "dpm-solver++", "num_inference_steps": 4, "output": "latents"} | options
    return minti.sample(model, ["a red star", "a toy"], generator=torch.Generator().manual_seed(0), **options)


@pytest.mark.parametrize("options", [{}, {"guidance_interval": (300, 1000)}, {"height": 48, "sampler": "heun"}])
def test_it_draws_what_torch_draws(installed, options):
    """Of batches and sizes that change within a run or differ from the model's; and it comes out without a trace."""
    model = minti.StableDiffusion.from_pretrained()
    alone, engine = drawn(model, **options), OpenVINO()
    with engine.attached(model):
        difference = drawn(model, **options) - alone
    assert 0 < difference.abs().max() < 1e-3 * alone.std()
    assert min(engine.seconds.values()) > 0
    assert torch.equal(drawn(model, **options), alone)


def test_bfloat16_stays_as_near_to_float32_as_torch_does(installed):
    model = minti.StableDiffusion.from_pretrained()
    exact, low = drawn(model), minti.StableDiffusion.from_pretrained(dtype=torch.bfloat16)
    errors = [(drawn(low).float() - exact).square().mean()]
    with OpenVINO().attached(low):
        errors.append((drawn(low).float() - exact).square().mean())
    assert errors[1] < 2 * errors[0]


@pytest.mark.parametrize("part", PARTS)
def test_other_adapters_of_the_unet_are_refused(installed, part):
    model = minti.StableDiffusion.from_pretrained()
    with PARTS[part](model).attached(model), pytest.raises(ValueError, match="leave out other adapters"):
        OpenVINO().attached(model).__enter__()
    with OpenVINO().attached(model):
        pass


def test_a_gradient_is_refused(installed, tmp_path):
    options = ("--clip-prompt", "a green toy", "--engine", "openvino", "--steps", 2, "--output", tmp_path)
    done = script_inside("sample.py", "a toy", *options, check=False)
    assert done.stderr == "error: OpenVINO gives no gradient; leave out what guides by one, or --engine openvino\n"


def test_the_script_samples_the_same_images(installed, tmp_path):
    for engine in ("torch", "openvino"):
        options = ("--num-images", 2, "--steps", 5, "--sampler", "ddim", "--output", tmp_path / engine)
        script_inside("sample.py", "a red star", "--engine", engine, *options)
    pictures = [Image.open(tmp_path / engine / "grid.png").convert("RGB") for engine in ("torch", "openvino")]
    assert max(high for _, high in ImageChops.difference(*pictures).getextrema()) <= 1  # of 255


def test_the_benchmark_times_it(installed, tmp_path):
    cases = (
        "--libraries",
        "minti",
        "openvino",
        "--only",
        "denoising",
        "UNet, guided",
        "lean",
        "few-step image, 4",
        "--output",
        tmp_path,
    )
    done = script("benchmark.py", "--toybox", "--repeats", 1, *cases)
    denoising, lean, few, fast, unet, short = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert denoising["openvino"]["difference"] < 1e-3
    assert unet["openvino"]["difference"] < 1e-3
    for row in (denoising, lean, few, unet):
        assert min(row["openvino"][what] for what in ("median", "conversion", "compilation")) > 0
    assert "openvino" not in short | fast
