"""The scripts as people run them: the main job in a process of its own, the shorter ones also in this one."""

import csv
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from running import script, script_inside
from safetensors.torch import load_file

import minti
from minti.denoising import DDIM, DDPM
from minti.guidance.conditions import Conditions
from minti.samplers.multistep import DPMSolver

ROOT = Path(__file__).parents[2]
CONCEPT = next((ROOT / "examples" / "concepts").iterdir())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The main job, on a few steps."""
    folder = tmp_path_factory.mktemp("outputs") / "toy"
    done = script("train.py", "--output", folder, "--steps", 12, "--sample-steps", 2, "--columns", 3, "--vectors", 2)
    return folder, done


@pytest.mark.fast
def test_the_main_job_writes_everything(trained):
    folder, done = trained
    assert {p.name for p in folder.iterdir()} == {
        "learned_embeds.safetensors",
        "page.png",
        "curves.png",
        "losses.csv",
        "checkpoints",
    }
    assert load_file(folder / "learned_embeds.safetensors")["<concept>"].shape == (2, 128)
    rows = list(csv.DictReader((folder / "losses.csv").open(encoding="utf-8")))
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert all(float(row["loss"]) > 0 for row in rows)
    assert rows[-1]["validation_loss"]
    page = Image.open(folder / "page.png")
    assert page.height > 15 * 128  # training images, the word alone, seven prompts before and after
    assert "learned <concept> in 12 steps" in done.stdout
    assert "\r" not in done.stderr  # no progress bar where there is no terminal


@pytest.mark.parametrize("run", [pytest.param(script_inside, marks=pytest.mark.fast), script], ids=["inside", "alone"])
def test_a_learned_word_is_sampled(trained, tmp_path, run):
    folder, _ = trained
    prompts = ("a sketch of a <concept>", "a red star")
    options = ("--embedding", folder / "learned_embeds.safetensors", "--num-images", 2, "--steps", 2)
    run("sample.py", *prompts, *options, "--output", tmp_path / "a")
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == ["00-00.png", "00-01.png", "01-00.png", "01-01.png", "grid.png"]
    run("sample.py", prompts[1], "--num-images", 2, "--steps", 2, "--output", tmp_path / "b", "--batch-size", 1)
    for i in range(2):  # the same image, whatever else is in the batch
        a, b = (Image.open(path) for path in (tmp_path / "a" / f"01-0{i}.png", tmp_path / "b" / f"00-0{i}.png"))
        difference = max(abs(x - y) for x, y in zip(a.tobytes(), b.tobytes()))
        assert difference <= 1  # rounding of the kernels, then of the 8 bits


def test_inpainting_changes_an_image_where_the_mask_says(tmp_path):
    """The kept half is the image's own, pixel for pixel."""
    picture = Image.open(sorted(CONCEPT.glob("*.png"))[0]).convert("RGB")
    mask = Image.new("L", picture.size, 0)
    mask.paste(255, (0, 0, 32, 64))
    picture.save(tmp_path / "picture.png")
    mask.save(tmp_path / "mask.png")
    options = ("--init-image", tmp_path / "picture.png", "--num-images", 1, "--steps", 4, "--output", tmp_path / "out")
    script_inside("sample.py", "a red star", *options, "--mask", tmp_path / "mask.png", "--sampler", "dpm-solver++")
    drawn = Image.open(tmp_path / "out/00-00.png")
    right, left = (32, 0, 64, 64), (0, 0, 32, 64)
    assert drawn.crop(right).tobytes() == picture.crop(right).tobytes()
    assert drawn.crop(left).tobytes() != picture.crop(left).tobytes()
    script_inside("sample.py", "a red star", *options, "--strength", 0.3)
    assert Image.open(tmp_path / "out/00-00.png").tobytes() != drawn.tobytes()


@pytest.mark.parametrize("where", ["right", "right.png"])
def test_an_extra_prompt_has_its_weight_and_mask(tmp_path, where):
    """The script's image is the library's."""
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    mask.save(tmp_path / "right.png")
    where = tmp_path / where if "." in where else where
    options = ("--num-images", 1, "--steps", 3, "--sampler", "ddim", "--output", tmp_path, "--quiet")
    extra = ("--extra-prompt", "a blue moon", "--extra-prompt-weight", 4, f"--extra-prompt-mask={where}")
    assert not script_inside("sample.py", "a red star", *options, *extra).stderr
    half = (torch.arange(16) >= 8).float().expand(1, 1, 16, 16)
    options = {"num_inference_steps": 3, "sampler": "ddim", "guidance_scale": 5.0}
    model, drawn = minti.StableDiffusion.from_pretrained(), Image.open(tmp_path / "00-00.png").tobytes()
    for others, same in (([("a blue moon", 4.0, half)], True), ([], False)):
        generator = torch.Generator().manual_seed(0)
        cfg = Conditions(model, others)
        (expected,) = minti.sample(model, "a red star", generator=generator, cfg=cfg, **options)
        assert (drawn == expected.tobytes()) == same


@pytest.mark.parametrize(
    ("given", "sampler"),
    [
        (("ddim", "--eta", 0.5), DDIM(eta=0.5)),
        (("ddpm", "--variance", "beta"), DDPM(variance="beta")),
        (("ddpm", "--variance", 0.3), DDPM(variance=0.3)),
        (("dpm-solver++", "--karras"), DPMSolver(karras=True)),
    ],
)
def test_the_samplers_options_reach_them(tmp_path, given, sampler):
    options = ("--num-images", 1, "--steps", 3, "--height", 16, "--width", 16, "--output", tmp_path)
    script_inside("sample.py", "a red star", *options, "--sampler", *given)
    model, generator = minti.StableDiffusion.from_pretrained(), torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 3, "height": 16, "width": 16}
    (expected,) = minti.sample(model, "a red star", sampler=sampler, generator=generator, **options)
    assert Image.open(tmp_path / "00-00.png").tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--eta", 0.5), "--eta is an option of ddim, not of --sampler ddpm"),
        (("--sampler", "ddim", "--karras"), "--karras is an option of dpm-solver++, not of --sampler ddim"),
        (("--sampler", "ddim", "--eta", 2), "eta = 2.0; expected 0 (deterministic) to 1"),
    ],
)
def test_options_of_another_sampler_are_refused(tmp_path, args, message):
    done = script_inside("sample.py", "a red star", *args, "--output", tmp_path, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("train.py", ("--placeholder", "star"), "in the vocabulary already"),
        ("train.py", ("--initializer", "zebra"), "is not a single token"),
        ("train.py", ("--model", "nowhere"), "nowhere is neither a folder, nor a file, nor an id on the hub"),
        ("train.py", ("--output", "/proc/minti"), "cannot write to the output folder /proc/minti"),
        ("sample.py", ("a", "--height", "65"), "must be multiples of 4"),
        ("sample.py", ("a", "--init-image", "none.png"), "none.png: no such image"),
        ("sample.py", ("a", "--model", "someone/nothing"), "cannot fetch someone/nothing from the hub"),
        ("sample.py", ("a", "--embedding", "none.safetensors"), "none.safetensors: no such file of learned words"),
    ],
)
@pytest.mark.fast
def test_bad_input_gets_one_line(tmp_path, name, args, message):
    output = () if "--output" in args else ("--output", tmp_path)
    done = script_inside(name, *args, *output, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_images_that_are_not_there_get_one_line(tmp_path):
    done = script_inside("train.py", "--images", "nowhere", "--output", tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: nowhere: no such folder; expected a folder with a few images\n"


@pytest.mark.parametrize("name", ["train.py", "sample.py", "evaluate.py", "toybox/evaluate_toybox.py", "benchmark.py"])
@pytest.mark.fast
def test_help(name):
    usage = script_inside(name, "--help").stdout
    for option in ("--model", "--output", "--seed", "--device", "--dtype"):
        assert option in usage


PAGE_FAULTS = """
import resource, sys, torch
from support.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
faults = []
for i in range(15):
    for size in (16, 14, 12, 10):  # times 4 MiB, and freed
        torch.ones(size, 2**20).mul(2.0)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[5])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_kept():
    """After a few rounds, the same tensors again take hardly a page from the system."""

    def faults(what):
        command, environment = [sys.executable, "-c", PAGE_FAULTS, what], os.environ | {"PYTHONPATH": ROOT / "examples"}
        return int(subprocess.run(command, capture_output=True, check=True, env=environment).stdout)

    assert faults("keep") < faults("give back") / 10


def test_the_benchmark_compares_both_libraries(tmp_path):
    """One case of each kind: a table line with both, and a line of JSON; of the same adapter the same loss."""
    cases = ("import", "ControlNet", "ip-adapter")
    done = script("benchmark.py", "--toybox", "--repeats", 1, "--only", *cases, "--output", tmp_path)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == json.loads((tmp_path / "benchmark.json").read_text(encoding="utf-8"))
    names = ["import", "ControlNet training step, no optimizer", "IP-Adapter training step"]
    assert [row["case"] for row in result["rows"]] == names
    for row in result["rows"]:
        assert row["diffusers"]["ratio"] == pytest.approx(row["diffusers"]["median"] / row["minti"]["median"])
        assert f"| {row['case']} |" in done.stdout
    for row in result["rows"][1:]:
        assert row["minti"]["loss"] == pytest.approx(row["diffusers"]["loss"], rel=1e-6)
        assert row["minti"]["memory"] >= row["minti"]["memory_in_steps"] > 0
    assert result["machine"]["matrix_gflops"] > 0


def test_the_benchmark_names_its_cases(tmp_path):
    done = script_inside("benchmark.py", "--only", "trainig", "--output", tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: --only trainig: no case has such a word in its name; they are: training step")
    assert done.stderr.count("\n") == 1
