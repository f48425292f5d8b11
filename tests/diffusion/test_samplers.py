"""The samplers alone: against diffusers' schedulers, and in a world where the exact prediction is known."""

from dataclasses import replace

import diffusers
import pytest
import torch
from helpers import CLASSES, SCHEDULER, SKIP, THEIR_KEYS, parse_config, seeded

from minti.denoising import DDIM, DDPM, SAMPLERS, Run, make_sampler
from minti.scheduler import NoiseScheduler, SchedulerConfig


@pytest.mark.parametrize("spacing", [None, "leading", "linspace", "trailing"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction", "v_prediction, zero snr"])
@pytest.mark.parametrize("sampler", [*SAMPLERS, "dpm-solver++ karras"])
def test_bare_sampler_equals_diffusers_scheduler(sampler, spacing, prediction_type):
    """Bit for bit, whatever the network predicts."""
    sampler, *karras = sampler.split()
    prediction_type, *zero_snr = prediction_type.split(", ")
    if sampler == "pndm" and (prediction_type == "sample" or zero_snr):
        pytest.skip("diffusers' PNDM has neither; see the tests in a Gaussian world and of bad arguments")
    if sampler == "heun" and zero_snr:
        pytest.skip("diffusers' Heun has no zero terminal SNR; see the test of Heun's from pure noise")
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
    ours = NoiseScheduler(parse_config(SchedulerConfig, {"set_alpha_to_one": sampler == "ddim", **config}))
    assert torch.equal(ours.betas, theirs.betas)
    theirs.set_timesteps(25)
    start = torch.randn(1, 4, 8, 8, generator=seeded(3))

    def network(x, t):  # any function of latents and time
        return torch.tanh(x) * (0.3 + t / 1500)

    expected, g = start * theirs.init_noise_sigma, seeded(4)
    draws = {"generator": g} if sampler not in ("pndm", "heun") else {}
    for t in theirs.timesteps:
        output = network(theirs.scale_model_input(expected, t), t.item())
        step = theirs.step(output, t, expected, **draws, **{k: v for k, v in options.items() if k == "eta"})
        expected = step.prev_sample

    sampler = replace(make_sampler(sampler), **options)
    *_, last = sampler(network, Run(start, ours, sampler.stops(ours, 25), seeded(4)))
    assert torch.isfinite(expected).all()
    assert torch.equal(last.latents, expected)


def test_ddpm_over_all_thousand_timesteps_equals_diffusers():
    theirs = diffusers.DDPMScheduler(clip_sample=False)
    ours = NoiseScheduler(parse_config(SchedulerConfig, dict(theirs.config)))
    theirs.set_timesteps(1000)
    start = torch.randn(1, 4, 4, 4, generator=seeded(3))
    expected, g = start, seeded(4)
    for t in theirs.timesteps:
        expected = theirs.step(torch.tanh(expected), t, expected, generator=g).prev_sample
    *_, last = DDPM()(lambda x, t: torch.tanh(x), Run(start, ours, DDPM().stops(ours, 1000), seeded(4)))
    assert torch.equal(last.latents, expected)


@pytest.mark.parametrize("v", [0.0, 0.3, 1.0])
def test_a_variance_between_equals_diffusers_learned_range(v):
    """`001`, Algorithm 2, line 5: posterior^(1 - v) beta^v, where a network that learned it would predict 2 v - 1."""
    theirs = diffusers.DDPMScheduler(clip_sample=False, variance_type="learned_range")
    ours = NoiseScheduler(SchedulerConfig(beta_start=1e-4, beta_end=0.02, beta_schedule="linear"))
    theirs.set_timesteps(50)
    start = torch.randn(1, 4, 4, 4, generator=seeded(3))
    expected, g = start, seeded(4)
    for t in theirs.timesteps:
        output = torch.cat([torch.tanh(expected), torch.full_like(expected, 2 * v - 1)], dim=1)
        expected = theirs.step(output, t, expected, generator=g).prev_sample
    sampler = DDPM(v)
    *_, last = sampler(lambda x, t: torch.tanh(x), Run(start, ours, sampler.stops(ours, 50), seeded(4)))
    torch.testing.assert_close(last.latents, expected, rtol=1e-5, atol=1e-5)


def gaussian_world(mean: float, std: float, scheduler: NoiseScheduler):
    """What the perfect network answers where x_0 ~ N(mean, std^2), by E[x_0 | x_t] and E[epsilon | x_t]."""

    def predict(x, t):
        a = scheduler.alpha_bar(t).double()
        clean = mean + a.sqrt() * std**2 / (a * std**2 + 1 - a) * (x - a.sqrt() * mean)
        return scheduler.target(clean, (x - a.sqrt() * clean) / (1 - a).sqrt(), t)

    return predict


def test_one_big_ddim_step_in_a_gaussian_world():
    """DDIM's step from t to s is linear: x_s = sqrt(a_s) E[x_0|x_t] + sqrt(1 - a_s) E[eps|x_t], worked out by hand."""
    scheduler = NoiseScheduler(SchedulerConfig(num_train_timesteps=1000))
    mean, std, t = 1.5, 0.4, 500
    x = torch.randn(1, 1, 50, 1, generator=seeded(), dtype=torch.float64)
    stops = DDIM().stops(scheduler, 2)  # 500 -> 0 -> the end
    first = next(DDIM()(gaussian_world(mean, std, scheduler), Run(x, scheduler, stops)))
    assert first.timestep == t
    a, a_0 = (scheduler.alphas_cumprod[i].double() for i in (t, 0))
    standardised = (x - a.sqrt() * mean) / (a * std**2 + 1 - a)
    expected = a_0.sqrt() * (mean + a.sqrt() * std**2 * standardised) + (1 - a_0).sqrt() * (1 - a).sqrt() * standardised
    torch.testing.assert_close(first.latents, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variance", ["posterior", "beta", 0.3])
def test_ancestral_sampling_reaches_the_gaussian_world(variance):
    """With the exact prediction and all timesteps, DDPM samples from N(mean, std^2)."""
    scheduler, n = NoiseScheduler(), 20_000
    start = torch.randn(1, 1, n, 1, generator=seeded(), dtype=torch.float64)
    predict = gaussian_world(1.5, 0.4, scheduler)
    sampler = DDPM(variance)
    *_, last = sampler(predict, Run(start, scheduler, sampler.stops(scheduler, 1000), seeded(2)))
    assert last.latents.mean().item() == pytest.approx(1.5, abs=0.02)
    assert last.latents.std().item() == pytest.approx(0.4, rel=0.03)


@pytest.mark.parametrize(("std", "right"), [(0.0, 0.0), (1.0, 1.0)])
def test_each_end_of_the_variance_is_exact_in_few_steps_for_one_world(std, right):
    """The posterior's for a single image, beta's for N(0, I) (arXiv 2006.11239, 3.2); the other is 5 % off or more."""
    scheduler = NoiseScheduler(SchedulerConfig(set_alpha_to_one=True))
    start, found = torch.randn(1, 1, 20_000, 1, generator=seeded(), dtype=torch.float64), {}
    for v in (0.0, 1.0):
        run = Run(start, scheduler, DDPM(v).stops(scheduler, 10), seeded(2))
        *states, _ = DDPM(v)(gaussian_world(0.0, std, scheduler), run)
        a = scheduler.alphas_cumprod[run.stops[-2].timestep].item()
        found[v] = states[-1].latents.var().item() / (a * std**2 + 1 - a)
    assert found[right] == pytest.approx(1, rel=0.03)
    assert abs(found[1 - right] - 1) > 0.05


@pytest.mark.parametrize("sampler", ["ddim", "pndm", "dpm-solver++", "euler", "heun"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_deterministic_samplers_carry_noise_to_the_gaussian_world(sampler, prediction_type):
    """Where x_0 ~ N(mean, std^2) the exact flow is x_0 = mean + std (x_T - sqrt(a) mean) / sqrt(a std^2 + 1 - a)."""
    scheduler = NoiseScheduler(SchedulerConfig(prediction_type=prediction_type, set_alpha_to_one=True))
    mean, std = 1.5, 0.4
    sampler = make_sampler(sampler)
    stops = sampler.stops(scheduler, 250)
    a = scheduler.alphas_cumprod[stops[0].timestep].double()
    x = torch.randn(1, 1, 50, 1, generator=seeded(), dtype=torch.float64)
    *_, last = sampler(gaussian_world(mean, std, scheduler), Run(x, scheduler, stops))
    expected = mean + std * (x - a.sqrt() * mean) / (a * std**2 + 1 - a).sqrt()
    # Of 250 steps; the last, which jumps to the mean of what is possible, costs most.
    torch.testing.assert_close(last.latents, expected, rtol=0, atol=0.03)
