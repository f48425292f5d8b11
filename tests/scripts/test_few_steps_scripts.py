"""The distillation of the toybox and its table, in a short trial; what a LoRA keeps of a trained network."""

import copy
import csv
import re
from itertools import pairwise
from pathlib import Path

import diffusers
import pytest
import torch
from helpers import seeded
from running import script_inside
from safetensors.torch import load_file

import minti
import world
from compare_few_steps import LORAS
from minti.samplers.few_step import TCD
from train_few_steps import Matrices, Trajectories, difference, training_prompts

ROOT = Path(__file__).parent.parent.parent


def test_a_lora_of_full_rank_is_all_that_training_has_changed(tiny):
    """The network's answers, with the matrices moved at random; a rank of one keeps less."""
    moved, before = copy.deepcopy(tiny), {k: v.clone() for k, v in tiny.unet.state_dict().items()}
    with torch.no_grad():
        for weight in Matrices(moved).trainable():
            weight += 0.02 * torch.randn(weight.shape, generator=seeded(weight.numel()))
        arguments = (torch.randn(1, 4, 8, 8, generator=seeded(1)), torch.tensor([500]), tiny.encode_prompt("a cat"))
        expected, plain = moved.unet(*arguments), tiny.unet(*arguments)
        errors = []
        for rank in (10_000, 1):
            lora = difference(moved, before, rank)
            with lora.merged(tiny):
                errors.append((tiny.unet(*arguments) - expected).abs().max().item())
    assert errors[0] < 1e-4 < errors[1]
    assert (plain - expected).abs().max() > 0.01


def test_biases_and_norms_are_not_trained(tiny):
    chosen = Matrices(tiny).trainable()
    assert chosen and all(weight.ndim > 1 for weight in chosen)


def test_a_student_s_steps_lie_on_the_trajectories(toybox):
    """Four, two and one steps: their ends are the stored latents, and the timesteps those of TCD's stops."""
    data, g = Trajectories(toybox), seeded(2)
    stored = torch.randn(6, 5, 8, 16, 16, generator=g)
    data.extend(stored[:2], torch.zeros(2, 32, 128))
    data.extend(stored[2:], torch.ones(4, 32, 128))
    for steps in (4, 2, 1):
        stops = [*(stop.timestep for stop in TCD().stops(toybox.scheduler, steps)[:-1]), 0]
        z, end, t, u, context = data.batch(40, steps, g)
        assert {(a.item(), b.item()) for a, b in zip(t, u)} == set(pairwise(stops))
        for i in range(40):
            image, start = next((n, s) for n in range(6) for s in range(5) if torch.equal(stored[n, s], z[i]))
            assert torch.equal(end[i], stored[image, start + 4 // steps])
            assert context[i].mean() == float(image >= 2)


def test_held_out_toys_are_never_prompts():
    prompts = training_prompts(3000, 0)
    assert len(set(prompts)) > 2000
    assert not [prompt for prompt in prompts for toy in world.HELD_OUT if toy.looks in prompt]


def test_a_trial_of_the_training_and_the_table(tmp_path):
    options = ("--trajectories", 32, "--length", 0.004, "--rank", 2, "--output", tmp_path, "--quiet")
    told = script_inside("toybox/train_few_steps.py", *options).stdout
    assert told.count("wrote") == 3
    first = {path: load_file(path) for path in tmp_path.glob("*.safetensors")}
    script_inside("toybox/train_few_steps.py", *options)  # all is there: nothing is trained anew
    for path, tensors in first.items():
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(path).items())
    script_inside("toybox/train_few_steps.py", *options, "--method", "consistency")
    model = minti.StableDiffusion.from_pretrained()
    lora = minti.load_lora(model, tmp_path / "lora-4.safetensors")
    assert any(pair.up.abs().max() > 0 for pair in lora.pairs.values())
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(minti.TOYBOX, safety_checker=None)
    pipe.load_lora_weights(str(tmp_path), weight_name="lora-4.safetensors")
    options = ("--ways", "student", "consistency", "--count", 4, "--batch-size", 4, "--output", tmp_path / "table")
    script_inside("toybox/compare_few_steps.py", *options, "--consistency", tmp_path / "lora-consistency.safetensors")
    with open(tmp_path / "table/few_steps.csv", encoding="utf-8", newline="") as file:
        found = [(row["way"], float(row["evaluations"])) for row in csv.DictReader(file)]
    assert [n for way, n in found if way == "consistency"] == [1, 2, 4, 8]
    assert (tmp_path / "table/few_steps.png").is_file()


@pytest.mark.parametrize("steps", [4, 2, 1])
def test_the_bundled_loras_are_opened_by_diffusers_and_sample_the_same(toybox, steps):
    """Byte for byte: unguided, with TCD and no noise, which is DDIM."""
    file = LORAS[steps]
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        minti.TOYBOX, safety_checker=None, torch_dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    pipe.scheduler = diffusers.TCDScheduler.from_config(pipe.scheduler.config)
    prompt = "a photo of a red heart with a white stripe"
    expected = pipe(prompt, num_inference_steps=steps, guidance_scale=1.0, generator=seeded(), eta=0.0).images[0]
    with minti.load_lora(toybox, file).attached(toybox):
        found = minti.sample(toybox, prompt, "", steps, 1, sampler=TCD(gamma=0), generator=seeded())[0]
    assert found.tobytes() == expected.tobytes()


def test_the_page_s_loop_runs(tmp_path):
    """On the toybox, with two steps in place of a thousand; diffusers opens what it writes."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "examples/few_steps.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    captions, lora = tmp_path / "captions.txt", tmp_path / "few-steps.safetensors"
    captions.write_text("a photo of a toy\n" * 5, encoding="utf-8")
    for old, new in (
        ('"CompVis/stable-diffusion-v1-4", "cuda"', ""),
        ('"images"', repr(str(ROOT / "examples/concepts/red-diamond-pink-belt"))),
        ('"captions.txt"', repr(str(captions))),
        ('"few-steps.safetensors"', repr(str(lora))),
        ("steps=1000", "steps=2"),
        ("rank=64", "rank=2"),
    ):
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    exec(code, {})
    diffusers.StableDiffusionPipeline.from_pretrained(minti.TOYBOX, safety_checker=None).load_lora_weights(str(lora))
