"""Guidance over time: the schedules have one mean, an interval is a step function, and the measures of known images."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import seeded

import minti
import world
from guidance_over_time import measured, schedules
from held_out import painted, random_scenes
from measure import load_judge
from minti.denoising import make_sampler
from minti.guidance.conditions import Conditions

pytestmark = pytest.mark.fast


def scale_of(how, t):
    """The guidance scale of a way at a timestep."""
    low, high = how.get("interval", (-1, 1000))
    scale = how["guidance_scale"]
    return (scale(t) if callable(scale) else scale) if low <= t <= high else 1


@pytest.mark.parametrize("sampler", ["ddim", "dpm-solver++", "ddpm"])
@pytest.mark.parametrize("steps", [4, 15, 20])
@pytest.mark.parametrize("scale", [2, 5.0])
def test_all_ways_have_the_same_mean_over_the_steps(toybox, sampler, steps, scale):
    stops = make_sampler(sampler).stops(toybox.scheduler, steps)
    timesteps = [stop.timestep for stop in stops if stop.timestep >= 0]
    assert len(timesteps) == steps
    ways = schedules(timesteps, scale)
    for name in ("constant", "early half", "late half", "falling", "rising"):
        mean = np.mean([scale_of(ways[name], t) for t in timesteps])
        # DPM-Solver++ rounds its timesteps, so that they are not quite even.
        assert mean == pytest.approx(scale, rel=0.01 if name in ("falling", "rising") else 1e-9), name
    first, last = timesteps[0], timesteps[-1]
    assert scale_of(ways["falling"], first) == scale_of(ways["rising"], last) == 2 * scale - 1
    assert scale_of(ways["falling"], last) == scale_of(ways["rising"], first) == 1
    assert scale_of(ways["early half"], last) == scale_of(ways["late half"], first) == 1


def test_half_a_run_is_guided_as_by_a_step_function(toybox):
    """With the interval the unguided steps evaluate the UNet once; the images are those of a scale of 1 there."""
    *stops, _ = make_sampler("ddim").stops(toybox.scheduler, 2)
    noise = torch.randn(1, 8, 16, 16, generator=seeded())
    given = {"num_inference_steps": 2, "sampler": "ddim", "latents": noise, "output": "latents"}
    for name in ("early half", "late half"):
        how = schedules([stop.timestep for stop in stops], 5)[name]
        cfg = Conditions(toybox, interval=how["interval"])
        halved = minti.sample(toybox, "a red star", cfg=cfg, guidance_scale=how["guidance_scale"], **given)
        stepped = minti.sample(toybox, "a red star", guidance_scale=lambda t, how=how: scale_of(how, t), **given)
        torch.testing.assert_close(halved, stepped, rtol=1e-4, atol=1e-4)


def test_the_measures_of_true_images_and_of_plain_colours():
    """Painted scenes are right by their own captions and not by others'; grey has no chroma, red all; 2 is clipped."""
    study = SimpleNamespace(judge=load_judge(minti.TOYBOX))
    scenes = random_scenes(24, 0, 95)
    captions = [
        world.caption(scene, np.random.default_rng(i), lambda toy, _: toy.looks) for i, scene in enumerate(scenes)
    ]
    pixels = painted(scenes, 96)
    own = measured(study, scenes, captions, pixels)
    assert sum(own["right"]) >= 23 and sum(own["obeyed"]) >= 23
    assert own["clipped"] == [0.0] * 24
    other = measured(study, scenes, captions, pixels.roll(1, dims=0))
    assert sum(other["right"]) <= 3
    colours = torch.tensor([[0.5, 0.5, 0.5], [1.0, -1.0, -1.0], [2.0, 2.0, -1.0]])[..., None, None].expand(
        -1, -1, 64, 64
    )
    plain = measured(study, scenes[:3], captions[:3], colours)
    assert plain["chroma"] == pytest.approx([0, 1, 1])
    assert plain["clipped"] == pytest.approx([0, 0, 2 / 3])
