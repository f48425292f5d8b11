"""Text to image, from prompts to images: compared with diffusers' pipeline; what is refused."""

from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from helpers import CLASSES, PROMPTS, SCHEDULER, SKIP, THEIR_KEYS, parse_config, seeded

import minti
from minti.denoising import make_sampler
from minti.editing.image_to_image import ImageToImage
from minti.guidance.conditions import Condition, Conditions, composed_guidance
from minti.scheduler import NoiseScheduler, SchedulerConfig


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
        ("euler", {}),
        ("heun", {}),
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
        sampler=replace(make_sampler(sampler), **options),
    )
    assert expected.std() > 0.1
    assert torch.equal(got, expected)


def test_images_equal_the_pipeline_byte_for_byte(tiny, pipeline):
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


def test_an_image_does_not_depend_on_its_neighbours(tiny):
    """A list of generators: image i alone and in a batch differ by the rounding of the kernels only."""
    many = minti.sample(
        tiny, PROMPTS * 2, generator=[seeded(i) for i in range(4)], num_inference_steps=10, output="latents"
    )
    alone = minti.sample(tiny, PROMPTS[1], generator=[seeded(3)], num_inference_steps=10, output="latents")
    torch.testing.assert_close(many[3:], alone, rtol=1e-4, atol=1e-4 * alone.abs().max().item())
    assert not torch.allclose(many[1], many[3], atol=0.1)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("gradient", [False, True])
def test_sampling_leaves_the_caller_s_gradient_mode_alone(tiny, enabled, gradient):
    context = tiny.encode_prompt("a cat").detach().requires_grad_()
    with torch.set_grad_enabled(enabled):
        for step in minti.sample_steps(tiny, context, num_inference_steps=2, gradient=gradient):
            assert torch.is_grad_enabled() == enabled
            assert step.latents.requires_grad == (enabled and gradient)


def test_contexts_give_what_their_words_give(tiny):
    options = {"num_inference_steps": 3, "output": "latents"}
    options["cfg"] = Conditions(tiny, extra_prompts=[("a toy", 2.0)])
    words = minti.sample(tiny, PROMPTS, "a toy", generator=seeded(), **options)
    context, negative = tiny.encode_prompt(PROMPTS), tiny.encode_prompt("a toy")
    options["cfg"] = Conditions(tiny, extra_prompts=[(negative, 2.0)])
    assert torch.equal(minti.sample(tiny, context, negative, generator=seeded(), **options), words)
    assert torch.equal(minti.sample(tiny, context, "a toy", generator=seeded(), **options), words)


def test_guidance_is_as_strong_as_suits_the_model(tiny):
    options = {"num_inference_steps": 2, "output": "latents"}
    drawn = lambda **scale: minti.sample(tiny, PROMPTS, generator=seeded(), **options, **scale)  # noqa: E731
    assert torch.equal(drawn(), drawn(guidance_scale=7.5))
    tiny.defaults = replace(tiny.defaults, guidance_scale=3.0)
    assert torch.equal(drawn(), drawn(guidance_scale=3.0))
    assert not torch.equal(drawn(), drawn(guidance_scale=7.5))


def test_a_gradient_flows_through_a_run_that_asks_for_it(tiny, pipeline):
    """The same as through diffusers' UNet and DDIMScheduler, of the sampled latents to the prompt's context."""
    theirs = diffusers.DDIMScheduler(**SCHEDULER, set_alpha_to_one=False)
    theirs.set_timesteps(3)
    start = torch.randn(2, 4, 8, 8, generator=seeded(3))
    contexts = [tiny.encode_prompt(PROMPTS).detach().requires_grad_() for _ in range(2)]
    empty, expected = tiny.encode_prompt(["", ""]).detach(), start
    for t in theirs.timesteps:
        both = pipeline.unet(torch.cat([expected] * 2), t, torch.cat([empty, contexts[0]])).sample
        uncond, cond = both.chunk(2)
        expected = theirs.step(uncond + 7.5 * (cond - uncond), t, expected).prev_sample
    options = {"latents": start, "sampler": "ddim", "num_inference_steps": 3, "output": "latents"}
    drawn = minti.sample(tiny, contexts[1], gradient=True, **options)
    assert torch.equal(drawn, expected)
    for latents in (expected, drawn):
        latents.square().sum().backward()
    assert contexts[0].grad.abs().max() > 0
    torch.testing.assert_close(contexts[1].grad, contexts[0].grad, rtol=1e-5, atol=1e-6)
    assert not minti.sample(tiny, contexts[1], **options).requires_grad


def test_guidance_of_one_s_own_is_applied_last(tiny):
    """A function from predict to predict: it sees what the prompts made of the prediction, and has the last word."""
    options = {"num_inference_steps": 3, "sampler": "ddim", "output": "latents", "latents": torch.randn(1, 4, 8, 8)}
    dog = minti.sample(tiny, "the dog", **options)
    other = composed_guidance(tiny.unet, [Condition(tiny.encode_prompt("the dog"), 7.5)], tiny.encode_prompt(""))
    assert torch.equal(minti.sample(tiny, "a red cat", guidance=lambda predict: other, **options), dog)
    seen = []
    watching = lambda predict: lambda x, t: seen.append(predict(x, t)) or seen[-1]  # noqa: E731
    assert torch.equal(minti.sample(tiny, "the dog", guidance=watching, **options), dog)
    assert torch.equal(seen[0], other(options["latents"], tiny.scheduler.timesteps(3)[0]))


@pytest.mark.parametrize("broken", [float("inf"), float("nan")])
def test_what_overflows_stops_at_once(tiny, broken):
    calls = []
    spoilt = lambda predict: lambda x, t: calls.append(t) or predict(x, t) * broken  # noqa: E731
    with pytest.raises(ValueError, match=r"overflowed \(guidance_scale 7.5, torch.float32\); try a lower"):
        minti.sample(tiny, "a cat", guidance=spoilt, num_inference_steps=5)
    assert len(calls) == 1


def test_given_latents_decide_the_image(tiny):
    noise = torch.randn(1, 4, 8, 8)
    runs = [
        minti.sample(tiny, "a cat", latents=noise, sampler="ddim", num_inference_steps=3, output="pixels")
        for _ in range(2)
    ]
    assert torch.equal(*runs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "unipc"}, "unknown sampler 'unipc'; expected one of ddpm, ddim, pndm, dpm-solver"),
        ({"height": 15}, "multiples of 2"),
        ({"output": "jpeg"}, "unknown output 'jpeg'"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
        ({"latents": torch.zeros(1, 4, 2, 2)}, "latents have shape"),
        ({"generator": [torch.Generator()] * 3}, "3 generators for a batch of 1"),
        ({"num_inference_steps": 0}, "expected 1 to 1000"),
        ({"begin": ImageToImage(torch.zeros(1, 4, 8, 8), mask=torch.zeros(1, 4, 8, 8))}, "mask have shape"),
        ({"begin": ImageToImage(torch.zeros(3, 4, 8, 8))}, "init_latents have shape"),
        ({"prompts": []}, "no prompt given"),
        ({"prompts": torch.zeros(16, 48)}, r"contexts of shape \(16, 48\); expected \(b, m, 48\)"),
        ({"prompts": torch.zeros(1, 16, 7)}, r"contexts of shape \(1, 16, 7\); expected \(b, m, 48\)"),
        ({"negative_prompt": torch.zeros(1, 3, 48)}, "negative prompts of 3 tokens for prompts of 16"),
        ({"guidance_scale": float("nan")}, "guidance_scale = nan; expected a number"),
    ],
)
def test_bad_arguments(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        minti.sample(tiny, **({"prompts": "a cat"} | options))


def test_what_cannot_be_begun(tiny):
    tiny.scheduler = NoiseScheduler(
        SchedulerConfig(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")
    )
    with pytest.raises(ValueError, match="pndm cannot begin at pure noise"):
        minti.sample(tiny, "a cat", sampler="pndm", num_inference_steps=3)
    with pytest.raises(ValueError, match="expected prediction_type 'v_prediction' or 'sample'"):
        parse_config(SchedulerConfig, {"rescale_betas_zero_snr": True})


SHORT = {"num_inference_steps": 6, "output": "latents"}


def test_conditions_without_anything_are_classifier_free_guidance(tiny):
    plain = minti.sample(tiny, PROMPTS, generator=seeded(), **SHORT)
    assert torch.equal(minti.sample(tiny, PROMPTS, generator=seeded(), cfg=Conditions(tiny), **SHORT), plain)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda model: {"begin": ImageToImage(torch.zeros(1, 4, 8, 8), 0)}, "strength = 0"),
        (
            lambda model: {"begin": ImageToImage(torch.zeros(1, 4, 8, 8), mask=torch.zeros(1, 4, 8, 8))},
            "mask have shape",
        ),
        (lambda model: {"begin": ImageToImage(torch.zeros(3, 4, 8, 8))}, "init_latents have shape"),
        (lambda model: {"cfg": Conditions(model, refresh_every=0)}, "refresh_every = 0"),
    ],
    ids=["strength", "mask", "latents", "refresh"],
)
def test_bad_ways_to_begin_and_to_guide(tiny, how, message):
    with pytest.raises(ValueError, match=message):
        minti.sample(tiny, "a cat", **how(tiny))
