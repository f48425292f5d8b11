"""`minti.sample` as it is called by hand: by position, by wrong names, and with `help`."""

import pydoc
import warnings

import pytest
import torch
from helpers import seeded

import minti
from minti.editing.image_to_image import ImageToImage
from minti.guidance.conditions import Conditions


def test_steps_scale_and_sampler_are_taken_by_position(tiny):
    taken = list(minti.sample_steps(tiny, ["a toy"], "", 2))
    assert len(taken) == 2
    named = {"negative_prompt": "a cat", "num_inference_steps": 2, "guidance_scale": 3.0, "sampler": "ddim"}
    expected = minti.sample(tiny, ["a toy"], **named, generator=seeded(), output="latents")
    assert torch.equal(minti.sample(tiny, ["a toy"], "a cat", 2, 3.0, "ddim", seeded(), output="latents"), expected)
    assert len(minti.sample(tiny, ["a toy"], "", 2)) == 1


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("num_steps", "num_inference_steps"),
        ("steps", "num_inference_steps"),
        ("guidence_scale", "guidance_scale"),
        ("negative", "negative_prompt"),
        ("samplers", "sampler"),
        ("seed", None),
    ],
)
def test_an_unknown_option_names_the_nearest(tiny, name, nearest):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'") as caught:
        minti.sample(tiny, ["a toy"], **{name: 2})
    assert ("did you mean" in str(caught.value)) == (nearest is not None)
    assert nearest is None or f"did you mean {nearest}?" in str(caught.value)


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


OLD = {
    "also": ({"also": [("a dog", 2.0)]}, lambda model: {"cfg": Conditions(model, extra_prompts=[("a dog", 2.0)])}),
    "guidance_interval": (
        {"guidance_interval": (200, 800)},
        lambda model: {"cfg": Conditions(model, interval=(200, 800))},
    ),
    "refresh_every": ({"refresh_every": 2}, lambda model: {"cfg": Conditions(model, refresh_every=2)}),
    "init_latents, strength": (
        {"init_latents": torch.zeros(1, 4, 8, 8), "strength": 0.5},
        lambda model: {"begin": ImageToImage(torch.zeros(1, 4, 8, 8), 0.5)},
    ),
    "init_latents, strength, mask": (
        {"init_latents": torch.zeros(1, 4, 8, 8), "strength": 1.0, "mask": torch.eye(8)[None, None]},
        lambda model: {"begin": ImageToImage(torch.zeros(1, 4, 8, 8), 1.0, torch.eye(8)[None, None])},
    ),
}


@pytest.mark.parametrize("name", OLD)
def test_options_of_version_0_1_still_work_with_a_warning(tiny, name):
    old, new = OLD[name]
    options = {"num_inference_steps": 4, "sampler": "ddim", "output": "latents"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the new ones warn of nothing
        expected = minti.sample(tiny, ["a cat"], generator=seeded(), **options, **new(tiny))
        plain = minti.sample(tiny, ["a cat"], generator=seeded(), **options)
    with pytest.warns(DeprecationWarning) as warned:
        got = minti.sample(tiny, ["a cat"], generator=seeded(), **options, **old)
    assert [str(one.message).split(" is ")[0] for one in warned if one.category is DeprecationWarning] == list(old)
    assert torch.equal(got, expected)
    assert not torch.equal(got, plain)
