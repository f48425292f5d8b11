"""Samplers, guidance and the whole way from prompts to pictures."""

import inspect

import diffusers
import numpy as np
import pytest
import torch

import minti
from minti.diffusion.samplers import SAMPLERS, ddim, ddpm, invert_ddim, run_timesteps
from minti.diffusion.scheduler import NoiseScheduler, SchedulerConfig

PROMPTS = ["a red cat", "the dog"]
CLASSES = {
    "ddpm": diffusers.DDPMScheduler,
    "ddim": diffusers.DDIMScheduler,
    "pndm": diffusers.PNDMScheduler,
    "dpm-solver++": diffusers.DPMSolverMultistepScheduler,
}


SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "steps_offset": 1,
}
SKIP = {sampler: {"skip_prk_steps": True} if sampler == "pndm" else {} for sampler in CLASSES}
THEIR_KEYS = {sampler: set(inspect.signature(kind.__init__).parameters) for sampler, kind in CLASSES.items()}


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
    tiny.scheduler = NoiseScheduler(SchedulerConfig.from_dict(SCHEDULER))
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


@pytest.mark.parametrize("spacing", [None, "leading", "linspace", "trailing"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction", "v_prediction, zero snr"])
@pytest.mark.parametrize("sampler", [*SAMPLERS, "dpm-solver++ karras"])
def test_bare_sampler_equals_diffusers_scheduler(sampler, spacing, prediction_type):
    """Bit for bit, but for two samplers that turn the predictions back into velocities, which rounds."""
    sampler, *karras = sampler.split()
    prediction_type, *zero_snr = prediction_type.split(", ")
    if sampler == "pndm" and (prediction_type == "sample" or zero_snr):
        pytest.skip("diffusers' PNDM has neither; see the tests in a Gaussian world and of bad arguments")
    if karras and zero_snr:
        pytest.skip("several steps round to the last timestep, at which diffusers loses count and raises an IndexError")
    config = SCHEDULER | {"prediction_type": prediction_type, "steps_offset": 0} | SKIP[sampler]
    config |= ({"timestep_spacing": spacing} if spacing else {}) | (
        {"rescale_betas_zero_snr": True} if zero_snr else {}
    )
    options = {"karras": True} if karras else {"eta": 0.7} if sampler == "ddim" else {}
    theirs = CLASSES[sampler](
        **{key: value for key, value in config.items() if key in THEIR_KEYS[sampler]},
        **({"use_karras_sigmas": True} if karras else {}),
    )
    ours = NoiseScheduler(SchedulerConfig.from_dict({"set_alpha_to_one": sampler == "ddim", **config}))
    assert torch.equal(ours.betas, theirs.betas)
    theirs.set_timesteps(25)
    start = torch.randn(1, 4, 8, 8, generator=seeded(3))

    def network(x, t):  # any function of latents and time
        return torch.tanh(x) * (0.3 + t / 1500)

    expected, g = start, seeded(4)
    draws = {"generator": g} if sampler != "pndm" else {}
    for t in theirs.timesteps:
        step = theirs.step(
            network(expected, int(t)), t, expected, **draws, **{k: v for k, v in options.items() if k == "eta"}
        )
        expected = step.prev_sample

    predict = lambda x, t: ours.clean_and_noise(network(x, t), x, t)  # noqa: E731
    timesteps = run_timesteps(sampler, ours, 25, bool(karras))
    *_, last = SAMPLERS[sampler](predict, start, ours, timesteps, seeded(4), **options)
    assert torch.isfinite(expected).all()
    if sampler in ("pndm", "dpm-solver++") and prediction_type == "v_prediction":
        torch.testing.assert_close(last.latents, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    else:
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


def test_the_empty_prompt_is_encoded_once(tiny):
    encoded = []
    hook = tiny.text_encoder.register_forward_pre_hook(lambda _, args: encoded.append(len(args[0])))
    next(minti.sample_steps(tiny, [*PROMPTS, "a photo"], num_inference_steps=2))
    next(minti.sample_steps(tiny, PROMPTS, num_inference_steps=2, guidance_scale=1))
    hook.remove()
    assert encoded == [3, 1, 2]


def test_pndm_evaluates_once_more(tiny):
    *_, last = minti.sample_steps(tiny, PROMPTS, num_inference_steps=50, sampler="pndm")
    assert last.evaluations == 2 * len(PROMPTS) * 51


@pytest.mark.parametrize("sampler", ["ddim", "pndm", "dpm-solver++"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_deterministic_samplers_carry_noise_to_the_gaussian_world(sampler, prediction_type):
    """Where x_0 ~ N(mean, std^2) the exact flow is x_0 = mean + std (x_T - sqrt(a) mean) / sqrt(a std^2 + 1 - a)."""
    scheduler = NoiseScheduler(SchedulerConfig(prediction_type=prediction_type, set_alpha_to_one=True))
    mean, std = 1.5, 0.4
    timesteps = run_timesteps(sampler, scheduler, 250)
    a = scheduler.alphas_cumprod[timesteps[0]].double()
    x = torch.randn(1, 1, 50, 1, generator=seeded(), dtype=torch.float64)
    *_, last = SAMPLERS[sampler](gaussian_world(mean, std, scheduler), x, scheduler, timesteps)
    expected = mean + std * (x - a.sqrt() * mean) / (a * std**2 + 1 - a).sqrt()
    # Of 250 steps; the last, which jumps to the mean of what is possible, costs most.
    torch.testing.assert_close(last.latents, expected, rtol=0, atol=0.03)


def test_ddim_inversion_equals_diffusers_and_returns(tiny, pipeline):
    """Latents to noise as DDIMInverseScheduler goes; the way back with DDIM ends near the beginning."""
    theirs = diffusers.DDIMInverseScheduler(**SCHEDULER, set_alpha_to_one=False)
    ours = NoiseScheduler(SchedulerConfig.from_dict(SCHEDULER))
    theirs.set_timesteps(50)
    clean = torch.randn(1, 4, 8, 8, generator=seeded(3))
    network = lambda x, t: torch.tanh(x) * (0.3 + t / 1500)  # noqa: E731
    expected = clean
    for t in theirs.timesteps:
        expected = theirs.step(network(expected, int(t)), int(t), expected).prev_sample
    predict = lambda x, t: ours.clean_and_noise(network(x, t), x, t)  # noqa: E731
    *_, up = invert_ddim(predict, clean, ours, ours.timesteps(50))
    torch.testing.assert_close(up.latents, expected, rtol=0, atol=1e-5)

    errors = []
    for n in (50, 500):  # halving the step halves the error of a method of first order, ten times less for a tenth
        *_, up = invert_ddim(predict, clean, ours, ours.timesteps(n))
        *_, down = ddim(predict, up.latents, ours, ours.timesteps(n))
        errors.append((down.latents - clean).abs().mean().item())
    assert errors[0] < 0.1
    assert errors[1] < errors[0] / 5


# --- guidance: what can be computed once ------------------------------------------------------------------------------


def test_the_first_unconditional_prediction_serves_all_from_shared_noise(tiny):
    """2 B T - (B - 1) evaluations, equal up to rounding to the pictures drawn one by one."""
    noise = torch.randn(1, 4, 8, 8, generator=seeded())
    options = {"num_inference_steps": 5, "sampler": "ddim"}
    prompts = [*PROMPTS, "a photo"]
    *_, last = minti.sample_steps(tiny, prompts, latents=noise.expand(3, -1, -1, -1), **options)
    assert last.evaluations == 2 * 3 * 5 - 2
    for i, prompt in enumerate(prompts):
        alone = minti.sample(tiny, prompt, latents=noise, output="latents", **options)
        torch.testing.assert_close(last.latents[i : i + 1], alone, rtol=1e-4, atol=1e-4 * alone.abs().max().item())
    # Where the negative prompts differ, nothing can be shared.
    *_, last = minti.sample_steps(tiny, PROMPTS, ["a", "b"], latents=noise.expand(2, -1, -1, -1), **options)
    assert last.evaluations == 2 * 2 * 5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_unconditional_trajectory_for_all(tiny, sampler):
    """T (B + 1) evaluations; exact for the empty prompt, whose own trajectory is the shared one."""
    noise = torch.randn(1, 4, 8, 8, generator=seeded()).expand(3, -1, -1, -1)
    generators = [seeded(5) for _ in range(3)]
    options = {"num_inference_steps": 6, "sampler": sampler, "generator": generators}
    *_, shared = minti.sample_steps(tiny, [*PROMPTS, ""], latents=noise, share_unconditional=True, **options)
    assert shared.latents.shape == shared.clean.shape == noise.shape
    evaluations = 7 if sampler == "pndm" else 6
    assert shared.evaluations == evaluations * (3 + 1)
    options["generator"] = [seeded(5)]
    exact = minti.sample(tiny, "", latents=noise[:1], guidance_scale=1, output="latents", **options)
    torch.testing.assert_close(shared.latents[2:], exact, rtol=1e-3, atol=1e-3 * exact.abs().max().item())


def test_refreshing_every_k_steps(tiny):
    """B T (1 + 1 / k) evaluations; every step is the exact run."""
    run = lambda **options: list(  # noqa: E731
        minti.sample_steps(tiny, PROMPTS, num_inference_steps=6, sampler="ddim", generator=seeded(), **options)
    )
    exact, every, third = run(), run(refresh_every=1), run(refresh_every=3)
    assert torch.equal(exact[-1].latents, every[-1].latents)
    assert third[-1].evaluations == 2 * 6 + 2 * 2
    assert torch.equal(third[0].latents, exact[0].latents)
    assert not torch.equal(third[1].latents, exact[1].latents)


def test_guidance_in_an_interval(tiny):
    timesteps = run_timesteps("ddim", tiny.scheduler, 6)
    run = lambda **options: list(  # noqa: E731
        minti.sample_steps(tiny, PROMPTS, num_inference_steps=6, sampler="ddim", generator=seeded(), **options)
    )
    limited, off = run(guidance_interval=(timesteps[3], timesteps[2])), run(guidance_scale=1)
    assert [step.evaluations for step in limited] == [2, 4, 8, 12, 14, 16]
    torch.testing.assert_close(limited[1].latents, off[1].latents)
    assert not torch.allclose(limited[2].latents, off[2].latents)


# --- from a picture ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_image_to_image_begins_where_the_strength_says(tiny, sampler):
    init = torch.randn(1, 4, 8, 8, generator=seeded(2))
    options = {"num_inference_steps": 10, "sampler": sampler, "init_latents": init}
    visited = lambda strength: [  # noqa: E731
        step.timestep for step in minti.sample_steps(tiny, "a cat", generator=seeded(), strength=strength, **options)
    ]
    timesteps = run_timesteps(sampler, tiny.scheduler, 10)
    assert visited(0.3) == timesteps[7:]
    assert visited(1.0) == timesteps
    little, much = (
        minti.sample(tiny, "a cat", generator=seeded(), strength=s, output="latents", **options) for s in (0.1, 0.8)
    )
    assert (little - init).abs().mean() < (much - init).abs().mean()
    whole = minti.sample(tiny, "a cat", generator=seeded(), strength=1, output="latents", **options)
    del options["init_latents"]
    assert torch.equal(whole, minti.sample(tiny, "a cat", generator=seeded(), output="latents", **options))


def test_image_to_image_equals_the_pipeline(tiny, pipeline):
    """The same latents, noise and steps as StableDiffusionImg2ImgPipeline."""
    theirs = diffusers.StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = diffusers.DDIMScheduler(**SCHEDULER, set_alpha_to_one=False)
    init = torch.randn(1, 4, 8, 8, generator=seeded(2))
    options = {"num_inference_steps": 10, "strength": 0.6, "generator": seeded()}
    expected = theirs("a cat", image=init, output_type="latent", **options).images
    options["generator"] = seeded()
    got = minti.sample(tiny, "a cat", init_latents=init, sampler="ddim", output="latents", **options)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_inpainting_keeps_the_unmasked_part(tiny, sampler):
    init = torch.randn(1, 4, 8, 8, generator=seeded(2))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    options = {"num_inference_steps": 8, "sampler": sampler, "generator": seeded(), "strength": 1, "output": "latents"}
    drawn = minti.sample(tiny, PROMPTS, init_latents=init, mask=mask, **options)
    assert torch.equal(drawn[..., 4:], init.expand(2, -1, -1, -1)[..., 4:])
    assert not torch.allclose(drawn[0, ..., :4], drawn[1, ..., :4])
    free = minti.sample(tiny, PROMPTS, **(options | {"generator": seeded()}))
    assert not torch.allclose(drawn[..., :4], free[..., :4])  # the kept part is seen by the drawn one


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
        SchedulerConfig(rescale_betas_zero_snr=True)
