"""LCM and TCD: against diffusers' schedulers bit for bit, TCD's two ends, and what does not fit a few-step model."""

import warnings

import diffusers
import pytest
import torch
from helpers import SCHEDULER, random_lora, seeded

import minti
from minti.adapters.lora_files import save_lora
from minti.denoising import Run, make_sampler
from minti.samplers.few_step import LCM, TCD, boundary_scalings
from minti.scheduler import NoiseScheduler, SchedulerConfig

LEVELS = {key: SCHEDULER[key] for key in ("beta_start", "beta_end", "beta_schedule")}


def network(x, t):  # any function of latents and time
    return torch.tanh(x) * (0.3 + t / 1500)


def ours(sampler, steps, prediction_type="epsilon", seed=4, **config):
    """The latents after a run from the noise of seed 3."""
    scheduler = NoiseScheduler(SchedulerConfig(prediction_type=prediction_type, **LEVELS, **config))
    start = torch.randn(2, 4, 8, 8, generator=seeded(3))
    *_, last = sampler(network, Run(start, scheduler, sampler.stops(scheduler, steps), seeded(seed)))
    return last.latents


def theirs(kind, steps, prediction_type="epsilon", original=50, seed=4, **options):
    scheduler = kind(prediction_type=prediction_type, original_inference_steps=original, **LEVELS)
    scheduler.set_timesteps(steps)
    x, generator = torch.randn(2, 4, 8, 8, generator=seeded(3)), seeded(seed)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.item()), t, x, generator=generator, **options).prev_sample
    return x


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("steps, original", [(1, 50), (2, 50), (4, 50), (7, 50), (50, 50), (8, 30)])
def test_lcm_equals_diffusers(steps, original, prediction_type):
    expected = theirs(diffusers.LCMScheduler, steps, prediction_type, original)
    assert torch.equal(ours(LCM(original), steps, prediction_type), expected)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("gamma", [0.0, 0.2, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("steps, original", [(1, 50), (2, 50), (4, 50), (8, 30)])
def test_tcd_equals_diffusers(steps, original, gamma, prediction_type):
    expected = theirs(diffusers.TCDScheduler, steps, prediction_type, original, eta=gamma)
    assert torch.equal(ours(TCD(original, gamma), steps, prediction_type), expected)


def test_lcm_s_boundary_scalings_equal_diffusers():
    """And at t = 0 the consistency function is the identity."""
    scheduler = diffusers.LCMScheduler()
    for t in torch.tensor([0, 1, 19, 259, 999]):
        expected = scheduler.get_scalings_for_boundary_condition_discrete(t)
        assert all(torch.equal(a, torch.as_tensor(b)) for a, b in zip(boundary_scalings(t), expected))
    assert boundary_scalings(0) == (1, 0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_tcd_without_noise_is_ddim_at_its_timesteps(prediction_type):
    """diffusers' DDIM with the timesteps written in by hand: 50 / 5 = 10 solver steps, 200 timesteps, a step."""
    scheduler = diffusers.DDIMScheduler(
        prediction_type=prediction_type, clip_sample=False, set_alpha_to_one=False, **LEVELS
    )
    scheduler.set_timesteps(5)
    scheduler.timesteps = torch.tensor([999, 799, 599, 399, 199])
    x = torch.randn(2, 4, 8, 8, generator=seeded(3))
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.item()), t, x).prev_sample
    torch.testing.assert_close(ours(TCD(gamma=0), 5, prediction_type), x, rtol=1e-5, atol=1e-6)
    assert torch.equal(ours(TCD(gamma=0), 5, seed=4), ours(TCD(gamma=0), 5, seed=5))  # nothing is drawn


def test_tcd_with_gamma_1_forgets_its_noise():
    """Every step starts from timestep 0 and fresh noise, by the formula of `002`, 4.3, and that of noise on noise."""
    sampler, scheduler = TCD(gamma=1), NoiseScheduler()
    stops = sampler.stops(scheduler, 2)
    x, z = (torch.randn(1, 4, 8, 8, generator=seeded(i)) for i in (3, 4))
    first = next(sampler(network, Run(x, scheduler, stops, seeded(4))))
    a_t, a_s, a_0 = scheduler.alphas_cumprod[[999, 499, 0]]
    noise = network(x, 999)
    clean = (x - (1 - a_t).sqrt() * noise) / a_t.sqrt()
    at_0 = a_0.sqrt() * clean + (1 - a_0).sqrt() * noise
    torch.testing.assert_close(first.latents, (a_s / a_0).sqrt() * at_0 + (1 - a_s / a_0).sqrt() * z)


def test_lcm_with_an_exact_consistency_function_samples_a_gaussian():
    """That of x_0 ~ N(mean, std^2) is x_0 = mean + std (x_t - sqrt(a) mean) / sqrt(a std^2 + 1 - a), so that any number
    of steps is right."""
    mean, std, scheduler = 1.5, 0.4, NoiseScheduler(SchedulerConfig(prediction_type="sample"))

    def predict(x, t):
        a = scheduler.alpha_bar(t).double()
        clean = mean + std * (x - a.sqrt() * mean) / (a * std**2 + 1 - a).sqrt()
        skip, out = boundary_scalings(t)
        return (clean - skip * x) / out

    start = torch.randn(1, 1, 40_000, 1, generator=seeded(), dtype=torch.float64)
    *_, last = LCM()(predict, Run(start, scheduler, LCM().stops(scheduler, 4), seeded(2)))
    assert last.latents.mean().item() == pytest.approx(mean, abs=0.01)
    assert last.latents.std().item() == pytest.approx(std, rel=0.02)


@pytest.mark.parametrize("name, kind", [("lcm", diffusers.LCMScheduler), ("tcd", diffusers.TCDScheduler)])
def test_a_pipeline_with_a_lora_samples_the_same_image(name, kind, tiny, pipeline, tmp_path):
    """Pixel for pixel: four unguided steps of a StableDiffusionPipeline with a LoRA from a file."""
    lora = random_lora(tiny)
    save_lora(lora, tmp_path / "lora.safetensors")
    pipeline.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
    options = {"num_inference_steps": 4, "guidance_scale": 1.0, "height": 16, "width": 16}
    options |= {"eta": 0.3} if name == "tcd" else {}  # their pipeline would hand over eta = 0
    expected = pipeline("a red cat", generator=seeded(5), **options).images[0]
    with lora.attached(tiny):
        found = minti.sample(tiny, "a red cat", "", 4, 1, sampler=name, generator=seeded(5))[0]
    assert found.tobytes() == expected.tobytes()
    assert found.tobytes() != minti.sample(tiny, "a red cat", "", 4, 1, sampler=name, generator=seeded(5))[0].tobytes()


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lcm", "tcd"])
def test_more_steps_than_the_solver_s_are_refused(name, tiny):
    with pytest.raises(ValueError, match="num_inference_steps = 51; expected 1 to 50"):
        minti.sample(tiny, "a cat", num_inference_steps=51, guidance_scale=1, sampler=name)
    with pytest.raises(ValueError, match="2000 solver steps; expected 1 to the schedule's 1000"):
        LCM(2000).stops(NoiseScheduler(), 4)


@pytest.mark.parametrize("name", ["lcm", "tcd"])
def test_guidance_on_top_of_a_few_step_model_is_warned_of(name, tiny):
    with pytest.warns(UserWarning, match=rf"guidance_scale = 7.5 with the sampler {name}.*set it to 1"):
        minti.sample(tiny, "a cat", "", 2, 7.5, sampler=name, output="latents")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        minti.sample(tiny, "a cat", "", 2, 2, sampler=name, output="latents")
        minti.sample(tiny, "a cat", "", 2, 7.5, sampler="ddim", output="latents")


@pytest.mark.parametrize("gamma", [-0.1, 1.1, float("nan")])
def test_gamma_is_a_share(gamma):
    with pytest.raises(ValueError, match=r"gamma = .*expected 0"):
        TCD(gamma=gamma)


def test_names_make_them():
    assert make_sampler("lcm") == LCM() and make_sampler("tcd") == TCD()
