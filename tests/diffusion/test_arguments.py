"""`minti.sample` as it is called by hand: by position, by wrong names, and with `help`."""

import pydoc

import pytest
import torch
from helpers import seeded

import minti


def test_steps_scale_and_sampler_are_taken_by_position(tiny):
    taken = list(minti.sample_steps(tiny, ["a toy"], "", 2))
    assert len(taken) == 2
    named = {"negative_prompt": "a cat", "num_inference_steps": 2, "guidance_scale": 3.0, "sampler": "ddim"}
    expected = minti.sample(tiny, ["a toy"], **named, generator=seeded(), output="latents")
    assert torch.equal(minti.sample(tiny, ["a toy"], "a cat", 2, 3.0, "ddim", seeded(), output="latents"), expected)
    assert len(minti.sample(tiny, ["a toy"], "", 2)) == 1


def test_an_unknown_option_is_named(tiny):
    """Also one of version 0.1."""
    for name in ("num_steps", "init_latents"):
        with pytest.raises(TypeError, match=f"sample.* got an unexpected keyword argument '{name}'"):
            minti.sample(tiny, ["a toy"], **{name: 2})
        with pytest.raises(TypeError, match=f"sample.* got an unexpected keyword argument '{name}'"):
            minti.sample_steps(tiny, ["a toy"], **{name: 2})


def test_help_names_what_a_run_can_be_given():
    said = pydoc.plain(pydoc.render_doc(minti.sample))
    for name in ("num_inference_steps", "guidance_scale", "sampler", "generator", "negative_prompt", "latents"):
        assert f"{name}:" in said, name


def test_no_prompt_is_refused(tiny):
    for nothing in ([], ()):
        with pytest.raises(ValueError, match="no prompt given"):
            tiny.encode_prompt(nothing)
        with pytest.raises(ValueError, match="no prompt given"):
            minti.sample(tiny, nothing, num_inference_steps=1)
