"""Samplers, guidance and the whole way from prompts to pictures."""

import diffusers
import numpy as np
import pytest
import torch

import minti
from minti.samplers import ddim, ddpm
from minti.scheduler import NoiseScheduler, SchedulerConfig

PROMPTS = ["a red cat", "the dog"]
THEIRS = {
    "ddpm": lambda config: diffusers.DDPMScheduler.from_config(config),
    "ddim": lambda config: diffusers.DDIMScheduler.from_config(config, set_alpha_to_one=False),
}


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("sampler", "options"), [("ddpm", {}), ("ddim", {}), ("ddim", {"eta": 0.5}), ("ddim", {"eta": 1.0})]
)
def test_guided_run_equals_the_pipeline(tiny, pipeline, sampler, options):
    pipeline.scheduler = THEIRS[sampler](pipeline.scheduler.config)
    expected = pipeline(
        PROMPTS,
        generator=seeded(),
        num_inference_steps=20,
        output_type="latent",
        negative_prompt=["a dog", ""],
        **options,
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


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_bare_sampler_equals_diffusers_scheduler(sampler, spacing, prediction_type):
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
    config |= {"timestep_spacing": spacing, "prediction_type": prediction_type}
    theirs = {"ddpm": diffusers.DDPMScheduler, "ddim": diffusers.DDIMScheduler}[sampler](**config)
    ours = NoiseScheduler(SchedulerConfig.from_dict(dict(theirs.config)))
    theirs.set_timesteps(25)
    start = torch.randn(1, 4, 8, 8, generator=seeded(3))

    def network(x, t):  # any function of latents and time
        return torch.tanh(x) * (0.3 + t / 1500)

    eta = {"eta": 0.7} if sampler == "ddim" else {}
    expected, g = start, seeded(4)
    for t in theirs.timesteps:
        expected = theirs.step(network(expected, int(t)), t, expected, generator=g, **eta).prev_sample

    run = {"ddpm": ddpm, "ddim": ddim}[sampler]
    predict = lambda x, t: ours.clean_and_noise(network(x, t), x, t)  # noqa: E731
    *_, last = run(predict, start, ours, ours.timesteps(25), seeded(4), **eta)
    assert torch.equal(last.latents, expected)


def test_ddpm_over_all_thousand_timesteps_equals_diffusers():
    theirs = diffusers.DDPMScheduler(clip_sample=False)
    ours = NoiseScheduler(SchedulerConfig.from_dict(dict(theirs.config)))
    theirs.set_timesteps(1000)
    start = torch.randn(1, 4, 4, 4, generator=seeded(3))
    expected, g = start, seeded(4)
    for t in theirs.timesteps:
        expected = theirs.step(torch.tanh(expected), t, expected, generator=g).prev_sample
    *_, last = ddpm(
        lambda x, t: ours.clean_and_noise(torch.tanh(x), x, t), start, ours, ours.timesteps(1000), seeded(4)
    )
    assert torch.equal(last.latents, expected)


def gaussian_world(mean: float, std: float, scheduler: NoiseScheduler):
    """The exact prediction where x_0 ~ N(mean, std^2): E[x_0 | x_t] and E[epsilon | x_t]."""

    def predict(x, t):
        a = scheduler.alphas_cumprod[t].double()
        clean = mean + a.sqrt() * std**2 / (a * std**2 + 1 - a) * (x - a.sqrt() * mean)
        return clean, (x - a.sqrt() * clean) / (1 - a).sqrt()

    return predict


def test_one_big_ddim_step_in_a_gaussian_world():
    """DDIM's step from t to s is linear: x_s = sqrt(a_s) E[x_0|x_t] + sqrt(1 - a_s) E[eps|x_t], worked out by hand."""
    scheduler = NoiseScheduler(SchedulerConfig(num_train_timesteps=1000))
    mean, std, t = 1.5, 0.4, 500
    x = torch.randn(1, 1, 50, 1, generator=seeded(), dtype=torch.float64)
    steps = ddim(gaussian_world(mean, std, scheduler), x, scheduler, [t, 0])  # two steps: 500 -> 0 -> the end
    first = next(steps)
    a, a_0 = (scheduler.alphas_cumprod[i].double() for i in (t, 0))
    standardised = (x - a.sqrt() * mean) / (a * std**2 + 1 - a)
    expected = a_0.sqrt() * (mean + a.sqrt() * std**2 * standardised) + (1 - a_0).sqrt() * (1 - a).sqrt() * standardised
    torch.testing.assert_close(first.latents, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_ancestral_sampling_reaches_the_gaussian_world(variance):
    """With the exact prediction and all timesteps, DDPM draws from N(mean, std^2)."""
    scheduler, n = NoiseScheduler(), 20_000
    start = torch.randn(1, 1, n, 1, generator=seeded(), dtype=torch.float64)
    predict = gaussian_world(1.5, 0.4, scheduler)
    *_, last = ddpm(predict, start, scheduler, scheduler.timesteps(1000), seeded(2), variance)
    assert last.latents.mean().item() == pytest.approx(1.5, abs=0.02)
    assert last.latents.std().item() == pytest.approx(0.4, rel=0.03)


def test_a_picture_does_not_depend_on_its_neighbours(tiny):
    """A list of generators: picture i alone and in a batch differ by the rounding of the kernels only."""
    many = minti.sample(
        tiny, PROMPTS * 2, generator=[seeded(i) for i in range(4)], num_inference_steps=10, output="latents"
    )
    alone = minti.sample(tiny, PROMPTS[1], generator=[seeded(3)], num_inference_steps=10, output="latents")
    torch.testing.assert_close(many[3:], alone, rtol=1e-4, atol=1e-4 * alone.abs().max().item())
    assert not torch.allclose(many[1], many[3], atol=0.1)


def test_evaluations_are_counted(tiny):
    """E4, question 2: 2 B T evaluations, B T where the guidance scale is 1."""
    for scale, factor in ((7.5, 2), (1.0, 1), (0.0, 2)):
        steps = list(minti.sample_steps(tiny, PROMPTS, num_inference_steps=4, guidance_scale=scale))
        assert [step.evaluations for step in steps] == [factor * 2 * (i + 1) for i in range(4)]
        assert [step.timestep for step in steps] == tiny.scheduler.timesteps(4)


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
        ({"sampler": "euler"}, "unknown sampler 'euler'; expected one of ddpm, ddim"),
        ({"height": 15}, "multiples of 2"),
        ({"output": "jpeg"}, "unknown output 'jpeg'"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
        ({"latents": torch.zeros(1, 4, 2, 2)}, "latents have shape"),
        ({"generator": [torch.Generator()] * 3}, "3 generators for a batch of 1"),
        ({"num_inference_steps": 0}, "expected 1 to 1000"),
    ],
)
def test_bad_arguments(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        minti.sample(tiny, "a cat", **options)
