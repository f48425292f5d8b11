"""The noise schedule against diffusers, Bayes' rule, and a world whose energy is known."""

import math

import diffusers
import pytest
import torch
from helpers import parse_config

from minti.denoising import DDPM
from minti.scheduler import NoiseScheduler, SchedulerConfig, make_betas

SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


def pair(**config):
    """The same schedule in both libraries."""
    theirs = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, clip_sample=False, **config)
    return NoiseScheduler(parse_config(SchedulerConfig, dict(theirs.config))), theirs


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_betas_equal_diffusers(schedule):
    ours, theirs = pair(beta_schedule=schedule)
    assert torch.equal(ours.betas, theirs.betas)
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)


def test_the_linear_schedule_of_the_notes():
    """`002`, 4.1: beta from 1e-4 to 0.02 in equal steps; these are diffusers' defaults, too."""
    betas = make_betas(SchedulerConfig(beta_schedule="linear", beta_start=1e-4, beta_end=0.02))
    expected = torch.tensor([1e-4 + t / 999 * (0.02 - 1e-4) for t in range(1000)], dtype=torch.float64)
    torch.testing.assert_close(betas.double(), expected, rtol=1e-5, atol=0)
    assert torch.equal(betas, diffusers.DDPMScheduler().betas)


def test_the_cosine_schedule_in_closed_form():
    """alpha-bar_t = f(t) / f(0) (arXiv 2102.09672, eq. 17), where beta_t is not capped; f(0) = 0.99984."""
    scheduler = NoiseScheduler(SchedulerConfig(beta_schedule="squaredcos_cap_v2"))
    f = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(1, 991)]
    expected = torch.tensor(f, dtype=torch.float64) / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(scheduler.alphas_cumprod[:990].double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("t", [50, 300, 600, 999])
def test_the_noise_loss_is_alpha_bar_times_the_velocity_loss(t):
    """The same prediction, measured as noise and as velocity; as clean latents it is (1 - alpha-bar) times."""
    scheduler = NoiseScheduler(SchedulerConfig(prediction_type="v_prediction"))
    clean, noise, error = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noisy, velocity, a = scheduler.add_noise(clean, noise, t), scheduler.velocity(clean, noise, t) + error, 1.0
    for beta in scheduler.betas[: t + 1].double():
        a = a * (1 - beta)
    got_clean, got_noise = scheduler.clean_and_noise(velocity, noisy, t)
    loss = error.square().mean()
    torch.testing.assert_close((got_noise - noise).square().mean(), a * loss, rtol=1e-4, atol=0)
    torch.testing.assert_close((got_clean - clean).square().mean(), (1 - a) * loss, rtol=1e-4, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_betas_are_float32_whatever_torch_makes_by_default(schedule):
    expected = pair(beta_schedule=schedule)[0].betas
    torch.set_default_dtype(torch.float64)
    try:
        betas = make_betas(SchedulerConfig(beta_schedule=schedule))
    finally:
        torch.set_default_dtype(torch.float32)
    assert betas.dtype == torch.float32
    assert torch.equal(betas, expected)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("n", [1, 7, 27, 50, 999])
def test_timesteps_equal_diffusers(spacing, offset, n):
    ours, theirs = pair(timestep_spacing=spacing, steps_offset=offset)
    theirs.set_timesteps(n)
    assert ours.timesteps(n) == theirs.timesteps.tolist()


def test_timesteps_beyond_the_schedule_are_an_error():
    ours, _ = pair(steps_offset=1)
    with pytest.raises(ValueError, match=r"1000.*fewer steps"):
        ours.timesteps(1000)
    with pytest.raises(ValueError, match="expected 1 to 1000"):
        ours.timesteps(1001)
    with pytest.raises(ValueError, match="unknown timestep spacing 'karras'"):
        ours.timesteps(5, "karras")


def test_add_noise_equals_diffusers():
    ours, theirs = pair(beta_schedule="scaled_linear")
    clean, noise = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([0, 3, 500, 999])
    assert torch.equal(ours.add_noise(clean, noise, timesteps), theirs.add_noise(clean, noise, timesteps))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_half_precision(dtype):
    """Noisy latents and velocities equal diffusers'; every other conversion returns the dtype that it was given."""
    ours, theirs = pair(prediction_type="v_prediction")
    clean, noise = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    t = torch.tensor([0, 3, 500, 999])
    assert torch.equal(ours.add_noise(clean, noise, t), theirs.add_noise(clean, noise, t))
    assert torch.equal(ours.velocity(clean, noise, t), theirs.get_velocity(clean, noise, t))
    back = (ours.clean_from_noise, ours.noise_from_clean, ours.clean_from_velocity, ours.noise_from_velocity)
    assert {convert(clean, noise, t).dtype for convert in back} == {dtype}
    assert {convert(noise, t).dtype for convert in (ours.score_from_noise, ours.noise_from_score)} == {dtype}


def test_add_noise_moments():
    """x_t of a fixed x_0 has mean sqrt(a) x_0 and variance 1 - a."""
    scheduler, g, n = NoiseScheduler(), torch.Generator().manual_seed(0), 200_000
    for t in (10, 400, 990):
        a = scheduler.alphas_cumprod[t].item()
        x = scheduler.add_noise(torch.full((n,), 1.7), torch.randn(n, generator=g), t)
        error = 5 * (1 - a) ** 0.5 / n**0.5  # five standard errors
        assert abs(x.mean().item() - a**0.5 * 1.7) < error
        assert abs(x.var().item() - (1 - a)) < 5 * (1 - a) * (2 / n) ** 0.5


@pytest.mark.parametrize(("t", "s"), [(999, 979), (500, 499), (41, 1), (21, 0)])
def test_posterior_is_bayes_rule(t, s):
    """q(x_s | x_t, x_0) from the two normal densities: precisions add, means are weighted by precision."""
    scheduler = NoiseScheduler()
    a_t, a_s = (scheduler.alphas_cumprod[i].double() for i in (t, s))
    x_0, x_t = torch.randn(2, 100, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    # x_s | x_0 ~ N(sqrt(a_s) x_0, 1 - a_s);   x_t | x_s ~ N(sqrt(r) x_s, 1 - r), r = a_t / a_s
    r = a_t / a_s
    precision = 1 / (1 - a_s) + r / (1 - r)
    mean = (a_s.sqrt() * x_0 / (1 - a_s) + r.sqrt() * x_t / (1 - r)) / precision
    got_mean, got_variance = scheduler.posterior(x_0, x_t, t, s)
    torch.testing.assert_close(got_mean, mean, rtol=1e-4, atol=1e-4)  # alphas_cumprod is float32; 1 - r cancels
    torch.testing.assert_close(got_variance.double(), 1 / precision, rtol=1e-3, atol=0)
    torch.testing.assert_close(scheduler.posterior(x_0, x_t, t, s, "beta")[1].double(), 1 - r, rtol=1e-3, atol=0)


def test_posterior_of_the_last_step_is_the_clean_image():
    x_0, x_t = torch.randn(2, 1, 4, 2, 2)
    mean, variance = NoiseScheduler().posterior(x_0, x_t, 1, -1)
    torch.testing.assert_close(mean, x_0)
    assert variance == pytest.approx(1e-20)


@pytest.mark.parametrize("t", [5, torch.tensor([5, 600])])
def test_conversions_are_inverse(t):
    scheduler = NoiseScheduler()
    clean, noise = torch.randn(2, 2, 4, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = scheduler.add_noise(clean, noise, t)
    v = scheduler.velocity(clean, noise, t)
    close = {"rtol": 1e-4, "atol": 1e-4}  # the schedule is float32
    torch.testing.assert_close(scheduler.clean_from_noise(x, noise, t), clean, **close)
    torch.testing.assert_close(scheduler.noise_from_clean(x, clean, t), noise, **close)
    torch.testing.assert_close(scheduler.clean_from_velocity(x, v, t), clean, **close)
    torch.testing.assert_close(scheduler.noise_from_velocity(x, v, t), noise, **close)
    torch.testing.assert_close(scheduler.noise_from_score(scheduler.score_from_noise(noise, t), t), noise, **close)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_any_prediction_type_gives_clean_and_noise(prediction_type):
    scheduler = NoiseScheduler(SchedulerConfig(prediction_type=prediction_type))
    clean, noise = torch.randn(2, 2, 4, 3, 3, generator=torch.Generator().manual_seed(3))
    output, x = scheduler.target(clean, noise, 300), scheduler.add_noise(clean, noise, 300)
    got_clean, got_noise = scheduler.clean_and_noise(output, x, 300)
    torch.testing.assert_close(got_clean, clean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got_noise, noise, rtol=1e-4, atol=1e-5)


def test_velocity_equals_diffusers():
    ours, theirs = pair(prediction_type="v_prediction")
    clean, noise = torch.randn(2, 3, 4, 2, 2)
    timesteps = torch.tensor([1, 500, 998])
    assert torch.equal(ours.target(clean, noise, timesteps), theirs.get_velocity(clean, noise, timesteps))


@pytest.mark.parametrize("t", [20, 250, 700, 980])
def test_score_is_minus_the_gradient_of_the_energy(t):
    """E4, question 1: a mixture of Gaussians, whose energy at every noise level has a closed form.

    x_0 ~ sum_k w_k N(m_k, s_k^2)   =>   p_t = sum_k w_k N(sqrt(a) m_k, a s_k^2 + 1 - a),   E_t = -log p_t.
    The exact epsilon is E[epsilon | x_t], by the conditional means of the components.
    """
    scheduler = NoiseScheduler()
    a = scheduler.alphas_cumprod[t].double()
    w, m, s = (torch.tensor(v, dtype=torch.float64) for v in ([0.2, 0.5, 0.3], [-2.0, 0.5, 3.0], [0.3, 0.8, 0.1]))
    x = torch.linspace(-4, 4, 101, dtype=torch.float64, requires_grad=True)

    means, variances = a.sqrt() * m, a * s**2 + (1 - a)
    log_parts = w.log() - 0.5 * ((x[:, None] - means) ** 2 / variances + (2 * torch.pi * variances).log())
    energy = -torch.logsumexp(log_parts, dim=1)
    (gradient,) = torch.autograd.grad(energy.sum(), x)

    weights = log_parts.softmax(dim=1)  # p(k | x_t)
    x_0 = m + (a.sqrt() * s**2 / variances) * (x[:, None] - means)  # E[x_0 | x_t, k]
    epsilon = (weights * (x[:, None] - a.sqrt() * x_0) / (1 - a).sqrt()).sum(dim=1)  # E[epsilon | x_t]
    score = scheduler.score_from_noise(epsilon.detach(), t)
    torch.testing.assert_close(-gradient, score, rtol=1e-5, atol=1e-6)


def test_config_errors():
    with pytest.raises(ValueError, match="clip_sample = True"):
        parse_config(SchedulerConfig, {"clip_sample": True})
    with pytest.raises(ValueError, match="prediction_type = 'score'"):
        parse_config(SchedulerConfig, {"prediction_type": "score"})
    with pytest.raises(ValueError, match="unknown beta_schedule 'cubic'"):
        parse_config(SchedulerConfig, {"beta_schedule": "cubic"})
    with pytest.raises(ValueError, match=r"unknown variance 'learned'; expected one of posterior, beta, or a number"):
        DDPM(variance="learned")
    for wrong in (1.1, -0.1, float("nan"), True):
        with pytest.raises(ValueError, match="unknown variance"):
            DDPM(variance=wrong)


@pytest.mark.parametrize("count", [0, -3, 100_001, 10**30])
def test_how_many_timesteps_there_may_be(count):
    with pytest.raises(ValueError, match=f"num_train_timesteps = {count}; expected a whole number from 1 to 100,000"):
        parse_config(SchedulerConfig, {"num_train_timesteps": count})
    assert parse_config(SchedulerConfig, {"num_train_timesteps": 1}).num_train_timesteps == 1
    slow = {"num_train_timesteps": 100_000, "beta_start": 1e-7, "beta_end": 1e-7}
    assert parse_config(SchedulerConfig, slow).num_train_timesteps == 100_000


def test_schedules_that_leave_no_signal():
    """Where every beta is 1/2, alpha-bar_t = 2^-(t + 1), and 2^-126 is the least normal number of float32."""
    half = {"beta_schedule": "linear", "beta_start": 0.5, "beta_end": 0.5}
    config = parse_config(SchedulerConfig, {"num_train_timesteps": 126, **half})
    assert NoiseScheduler(config).alphas_cumprod[-1] == 2.0**-126
    with pytest.raises(ValueError, match="has timesteps without signal"):
        parse_config(SchedulerConfig, {"num_train_timesteps": 127, **half})


def test_one_timestep_cannot_be_all_noise_and_keep_its_signal():
    config = {"num_train_timesteps": 1, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    with pytest.raises(ValueError, match="has timesteps without signal"):
        parse_config(SchedulerConfig, config)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_slowest_schedule_begins_with_some_noise(schedule):
    assert NoiseScheduler(SchedulerConfig(100_000, 1e-7, 1e-7, schedule)).alphas_cumprod[0] < 1
