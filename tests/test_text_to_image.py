"""The whole way from prompts to pictures."""

import numpy as np
import pytest
import torch
from helpers import CLASSES, PROMPTS, SCHEDULER, SKIP, THEIR_KEYS, seeded

import minti
from minti.checkpoints.configs import parse_config
from minti.diffusion.scheduler import NoiseScheduler, SchedulerConfig


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("ddpm", {}),
        ("ddim", {}),
        ("ddim", {"eta": 0.5}),
        ("ddim", {"eta": 1.0}),
        ("pndm", {}),
        ("dpm-solver++", {}),
        ("dpm-solver++", {"karras": True}),
    ],
)
def test_guided_run_equals_the_pipeline(tiny, pipeline, sampler, options):
    """Each sampler from the release's scheduler config, with the spacing that diffusers then gives it."""
    tiny.scheduler = NoiseScheduler(parse_config(SchedulerConfig, SCHEDULER))
    karras = {"use_karras_sigmas": options.get("karras", False)} if sampler == "dpm-solver++" else {}
    config = {"set_alpha_to_one": False} | SCHEDULER | karras
    pipeline.scheduler = CLASSES[sampler](
        **{k: v for k, v in config.items() if k in THEIR_KEYS[sampler]}, **SKIP[sampler]
    )
    expected = pipeline(
        PROMPTS,
        generator=seeded(),
        num_inference_steps=20,
        output_type="latent",
        negative_prompt=["a dog", ""],
        **{key: value for key, value in options.items() if key == "eta"},
    ).images
    got = minti.sample(
        tiny,
        PROMPTS,
        ["a dog", ""],
        generator=seeded(),
        num_inference_steps=20,
        output="latents",
        sampler=sampler,
        **options,
    )
    assert expected.std() > 0.1
    assert torch.equal(got, expected)


def test_pictures_equal_the_pipeline_byte_for_byte(tiny, pipeline):
    expected = pipeline(PROMPTS, generator=seeded(), num_inference_steps=5).images
    got = minti.sample(tiny, PROMPTS, generator=seeded(), num_inference_steps=5)
    assert np.asarray(expected[0]).std() > 1
    for a, b in zip(got, expected):
        assert a.tobytes() == b.tobytes()


def test_other_sizes_and_no_guidance_equal_the_pipeline(tiny, pipeline):
    options = {"num_inference_steps": 4, "height": 24, "width": 40, "guidance_scale": 1}
    expected = pipeline(PROMPTS, generator=seeded(), output_type="latent", **options).images
    got = minti.sample(tiny, PROMPTS, generator=seeded(), output="latents", **options)
    assert torch.equal(got, expected)


def test_a_picture_does_not_depend_on_its_neighbours(tiny):
    """A list of generators: picture i alone and in a batch differ by the rounding of the kernels only."""
    many = minti.sample(
        tiny, PROMPTS * 2, generator=[seeded(i) for i in range(4)], num_inference_steps=10, output="latents"
    )
    alone = minti.sample(tiny, PROMPTS[1], generator=[seeded(3)], num_inference_steps=10, output="latents")
    torch.testing.assert_close(many[3:], alone, rtol=1e-4, atol=1e-4 * alone.abs().max().item())
    assert not torch.allclose(many[1], many[3], atol=0.1)


def test_sampling_leaves_gradients_switched_on_for_the_caller(tiny):
    for step in minti.sample_steps(tiny, "a cat", num_inference_steps=2):
        assert torch.is_grad_enabled()
        assert not step.latents.requires_grad


def test_given_latents_decide_the_picture(tiny):
    noise = torch.randn(1, 4, 8, 8)
    runs = [
        minti.sample(tiny, "a cat", latents=noise, sampler="ddim", num_inference_steps=3, output="pixels")
        for _ in range(2)
    ]
    assert torch.equal(*runs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "euler"}, "unknown sampler 'euler'; expected one of ddpm, ddim, pndm, dpm-solver"),
        ({"height": 15}, "multiples of 2"),
        ({"output": "jpeg"}, "unknown output 'jpeg'"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
        ({"latents": torch.zeros(1, 4, 2, 2)}, "latents have shape"),
        ({"generator": [torch.Generator()] * 3}, "3 generators for a batch of 1"),
        ({"num_inference_steps": 0}, "expected 1 to 1000"),
        ({"strength": 0}, "strength = 0"),
        ({"mask": torch.zeros(1, 1, 8, 8)}, "give both"),
        ({"mask": torch.zeros(1, 4, 8, 8), "init_latents": torch.zeros(1, 4, 8, 8)}, "mask have shape"),
        ({"init_latents": torch.zeros(3, 4, 8, 8)}, "init_latents have shape"),
        ({"refresh_every": 0}, "refresh_every = 0"),
    ],
)
def test_bad_arguments(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        minti.sample(tiny, "a cat", **options)


def test_what_cannot_be_shared_or_begun(tiny):
    with pytest.raises(ValueError, match="the same initial noise"):
        minti.sample(tiny, PROMPTS, share_unconditional=True)
    tiny.scheduler = NoiseScheduler(
        SchedulerConfig(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")
    )
    with pytest.raises(ValueError, match="pndm cannot begin at pure noise"):
        minti.sample(tiny, "a cat", sampler="pndm", num_inference_steps=3)
    with pytest.raises(ValueError, match="expected prediction_type 'v_prediction' or 'sample'"):
        parse_config(SchedulerConfig, {"rescale_betas_zero_snr": True})
