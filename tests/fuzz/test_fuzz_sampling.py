"""Sampling with numbers from minus to plus infinity."""

from __future__ import annotations

import pytest
from fuzzing import NUMBERS, inputs, refusal
from hypothesis import example, given
from hypothesis import strategies as st

import minti
from minti.denoising import DDIM
from minti.editing.image_to_image import ImageToImage
from minti.guidance.conditions import Conditions

STEPS = st.one_of(st.integers(-2, 5), st.sampled_from([1001, 2**63, -(2**63), 10**400]))
OPTIONS = st.fixed_dictionaries(
    {"num_inference_steps": STEPS},
    optional={
        "guidance_scale": NUMBERS,
        "sampler": st.one_of(st.sampled_from(("ddpm", "ddim", "pndm", "dpm-solver++")), st.text(max_size=5)),
        "height": st.one_of(st.integers(-20, 40), st.just(16)),
        "width": st.one_of(st.integers(-20, 40), st.just(2)),
        "cfg": st.fixed_dictionaries(
            {},
            optional={
                "refresh_every": st.integers(-1, 3),
                "interval": st.tuples(st.integers(-9, 2000), st.integers(-9, 2000)),
                "extra_prompts": st.lists(st.tuples(st.just("a dog"), NUMBERS), max_size=2),
            },
        ),
        "negative_prompt": st.one_of(st.text(max_size=5), st.lists(st.text(max_size=3), max_size=2)),
    },
)


@pytest.fixture(scope="module")
def model(fresh):
    return fresh()


@inputs(4)
@given(OPTIONS)
@example({"num_inference_steps": 2, "guidance_scale": float("nan")})
@example({"num_inference_steps": 2, "guidance_scale": 1e300})
@example({"num_inference_steps": 2, "guidance_scale": 10**400})
@example({"num_inference_steps": 2, "cfg": {"extra_prompts": [("a dog", float("inf"))]}})
@example({"num_inference_steps": 10**400})
@example({"num_inference_steps": 3, "sampler": "a\nb"})
def test_an_image_is_sampled_or_refused(model, options):
    with refusal():
        options = {key: Conditions(model, **value) if key == "cfg" else value for key, value in options.items()}
        assert minti.sample(model, "a cat", output="pixels", **options).isfinite().all()


@inputs(3)
@given(st.sampled_from(("ddim", "ddpm", "dpm-solver++")), NUMBERS, NUMBERS)
@example("ddim", float("nan"), 0.5)
@example("ddim", 10**400, 0.5)
def test_eta_and_strength_are_used_or_refused(model, sampler, eta, strength):
    with refusal("eta", "strength"):
        sampler = DDIM(eta) if sampler == "ddim" else sampler
        start = minti.sample(model, "a cat", output="latents", num_inference_steps=2)
        begin = ImageToImage(start, strength)
        images = minti.sample(model, "a dog", output="pixels", num_inference_steps=3, sampler=sampler, begin=begin)
        assert images.isfinite().all()
