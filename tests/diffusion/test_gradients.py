"""Guidance by gradients where the answer is known: mixtures of Gaussians, a linear loss, moments after renoising."""

import re
from functools import partial

import pytest
import torch
from helpers import seeded

from minti.denoising import DDIM, DDPM, Run
from minti.guidance.gradients import Recurrent, classifier_guidance, universal_guidance
from minti.scheduler import NoiseScheduler, SchedulerConfig

TYPES = ("epsilon", "v_prediction", "sample")


def scheduler_of(prediction_type="epsilon"):
    return NoiseScheduler(SchedulerConfig(prediction_type=prediction_type, set_alpha_to_one=True))


def gaussian(scheduler, mean=0.7, deviation=0.5):
    """The network's exact answer for x_0 ~ N(mean, deviation^2): grad log p_t = (sqrt(a) m - x) / (a s^2 + 1 - a)."""

    def predict(x, t):
        a = scheduler.alphas_cumprod[t]
        noise = scheduler.noise_from_score((a.sqrt() * mean - x) / (a * deviation**2 + 1 - a), t)
        return scheduler.target(scheduler.clean_from_noise(x, noise, t), noise, t)

    return predict


@pytest.mark.parametrize("prediction_type", TYPES)
def test_at_scale_one_a_classifier_gives_the_conditional_score(prediction_type):
    """p_t(x) = sum_k w_k N(sqrt(a) m_k, a s_k^2 + 1 - a), and the classifier is Bayes' rule."""
    scheduler = scheduler_of(prediction_type)
    w, m, s = (torch.tensor(v).double() for v in ([0.2, 0.5, 0.3], [-2.0, 0.5, 3.0], [0.3, 0.8, 0.4]))

    def log_parts(x, t):
        a = scheduler.alphas_cumprod[t].double()
        return w.log() + torch.distributions.Normal(a.sqrt() * m, (a * s**2 + 1 - a).sqrt()).log_prob(x[..., None])

    def log_posterior(k, x, t):
        return log_parts(x, t).log_softmax(-1)[..., k].sum((1, 2, 3))

    def network(x, t):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            score = torch.autograd.grad(log_parts(x, t).logsumexp(-1).sum(), x)[0]
        noise = scheduler.noise_from_score(score, t)
        return scheduler.target(scheduler.clean_from_noise(x.detach(), noise, t), noise, t)

    x = torch.randn(40, 1, 1, 1, generator=seeded()).double()
    for k in range(3):
        guided = classifier_guidance(scheduler, partial(log_posterior, k), 1.0)(network)
        for t in (900, 500, 100):
            a = scheduler.alphas_cumprod[t].double()
            _, noise = scheduler.clean_and_noise(guided(x, t), x, t)
            expected = (a.sqrt() * m[k] - x) / (a * s[k] ** 2 + 1 - a)
            torch.testing.assert_close(scheduler.score_from_noise(noise, t), expected, rtol=1e-4, atol=1e-4)


def test_algorithm_2_in_a_ddpm_step_is_algorithm_1():
    """mean + s Sigma g (Algorithm 1) with Sigma = beta, and mean + s beta / sqrt(alpha) g (Algorithm 2 in DDPM)."""
    scheduler, slope, scale = scheduler_of(), torch.randn(2, 3, 4, 4, generator=seeded()).double(), 3.0
    log_probability = lambda x, t: (slope * x).sum((1, 2, 3))  # noqa: E731
    x = torch.randn(slope.shape, generator=seeded(1)).double()
    stops, predict = DDPM().stops(scheduler, 1000), gaussian(scheduler)

    def step(predict, number):
        return next(DDPM("beta")(predict, Run(x, scheduler, stops, seeded(2), start=number))).latents

    guided = classifier_guidance(scheduler, log_probability, scale)(predict)
    for number in (100, 500, 900):
        moved = step(guided, number) - step(predict, number)
        beta = scheduler.betas[stops[number].timestep].double()
        torch.testing.assert_close(moved, scale * beta / (1 - beta).sqrt() * slope, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(moved, scale * beta * slope, rtol=0.011, atol=1e-5)


@pytest.mark.parametrize("prediction_type", TYPES)
def test_a_linear_loss_on_a_gaussian(prediction_type):
    """x_0(x_t) = m + sqrt(a) s^2 / (a s^2 + 1 - a) (x_t - sqrt(a) m), so the loss l . x_0 has the gradient
    sqrt(a) s^2 / (a s^2 + 1 - a) l; forward adds s sqrt(1 - a) of it, backward -n r l to the clean latents."""
    scheduler, slope = scheduler_of(prediction_type), torch.randn(2, 3, 4, 4, generator=seeded()).double()
    x, predict = torch.randn(slope.shape, generator=seeded(1)).double(), gaussian(scheduler)
    loss = lambda clean: (slope * clean).sum((1, 2, 3))  # noqa: E731
    with torch.no_grad():
        for t in (900, 500, 100):
            a = scheduler.alphas_cumprod[t].double()
            clean, noise = scheduler.clean_and_noise(predict(x, t), x, t)
            forward = universal_guidance(scheduler, loss, 2.0)(predict)(x, t)
            expected = noise + 2 * (1 - a).sqrt() * a.sqrt() * 0.25 / (0.25 * a + 1 - a) * slope
            torch.testing.assert_close(scheduler.clean_and_noise(forward, x, t)[1], expected, rtol=1e-4, atol=1e-5)
            backward = universal_guidance(scheduler, loss, 0.0, backward_steps=3, backward_rate=0.2)(predict)(x, t)
            moved = scheduler.clean_and_noise(backward, x, t)[0]
            torch.testing.assert_close(moved, clean - 0.6 * slope, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", [DDPM(), DDIM(), DDIM(eta=1.0)])
def test_recurrence_stays_at_the_level(sampler):
    """On a Gaussian every interval, however often it is taken, ends in the exact marginal: its mean and deviation."""
    scheduler, stops = scheduler_of(), sampler.stops(scheduler_of(), 100)
    start = torch.randn(1, 1, 100, 200, generator=seeded())
    for number, step in enumerate(Recurrent(sampler, 3)(gaussian(scheduler), Run(start, scheduler, stops, seeded(1)))):
        if number in (20, 60, 90):
            signal, noise = stops[number + 1].level
            assert abs(step.latents.mean() - signal * 0.7) < 0.02
            assert abs(step.latents.std() / (signal**2 * 0.25 + noise**2) ** 0.5 - 1) < 0.02


def test_once_is_the_sampler_itself():
    scheduler, stops = scheduler_of(), DDPM().stops(scheduler_of(), 10)
    start = torch.randn(1, 1, 4, 4, generator=seeded())
    once, plain = (
        [step.latents for step in sampler(gaussian(scheduler), Run(start, scheduler, stops, seeded(1)))]
        for sampler in (Recurrent("ddpm"), DDPM())
    )
    assert all(map(torch.equal, once, plain))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda x: x.detach().sum((1, 2, 3)), "the loss gives no gradient"),
        (lambda x: x.sum(), r"the loss has shape \(\); expected \(2,\)"),
        (lambda x: (x * 0).sum((1, 2, 3)).sqrt(), "gradient is not finite at timestep 500"),
    ],
)
def test_losses_that_cannot_guide(loss, message):
    scheduler, x = scheduler_of(), torch.zeros(2, 1, 2, 2)
    for guidance in (
        universal_guidance(scheduler, loss, 1.0),
        universal_guidance(scheduler, loss, 0.0, backward_steps=1),
        classifier_guidance(scheduler, lambda x, t: loss(x), 1.0),
    ):
        with pytest.raises(ValueError, match=message):
            guidance(gaussian(scheduler))(x, 500)


@pytest.mark.parametrize("scale", [3e38, float("nan")])
def test_an_overflow_is_told_with_the_scale(scale):
    scheduler, x = scheduler_of(), torch.ones(2, 1, 2, 2)
    for guidance in (
        universal_guidance(scheduler, lambda x: 1e3 * x.sum((1, 2, 3)), scale),
        classifier_guidance(scheduler, lambda x, t: 1e3 * x.sum((1, 2, 3)), scale),
    ):
        with pytest.raises(ValueError, match=re.escape(f"overflowed at timestep 500, at scale {scale:g};")):
            guidance(gaussian(scheduler))(x, 500)


def test_recurrence_refuses():
    with pytest.raises(ValueError, match="times = 0"):
        Recurrent("ddim", 0)
    for sampler in ("pndm", "dpm-solver++", "euler", "heun"):
        with pytest.raises(ValueError, match="cannot repeat a step; use ddpm or ddim"):
            Recurrent(sampler, 2)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_in_pure_noise_only_the_backward_part_acts(prediction_type):
    """At alpha-bar 0 the best x_0 is the mean, whatever the latents are, and a classifier sees no class."""
    scheduler = NoiseScheduler(SchedulerConfig(prediction_type=prediction_type, rescale_betas_zero_snr=True))
    assert scheduler.alphas_cumprod[999] == 0
    x, slope = (torch.randn(2, 3, 4, 4, generator=seeded(i)) for i in (0, 1))
    mean = torch.full_like(x, 0.7)
    loss = lambda clean: (slope * clean).sum((1, 2, 3))  # noqa: E731
    predict = lambda latents, t: scheduler.target(mean + 0 * latents, latents, t)  # noqa: E731
    for forward in (universal_guidance(scheduler, loss, 5.0), classifier_guidance(scheduler, lambda x, t: loss(x), 5)):
        assert torch.equal(forward(predict)(x, 999), predict(x, 999))
    for scale in (0.0, 5.0):
        backward = universal_guidance(scheduler, loss, scale, backward_steps=2, backward_rate=0.1)
        clean, noise = scheduler.clean_and_noise(backward(predict)(x, 999), x, 999)
        torch.testing.assert_close(clean, mean - 0.2 * slope)
        torch.testing.assert_close(noise, x)


def test_a_run_that_begins_in_pure_noise():
    """Guided from N(0.7, 0.5^2) to the class "about 1.2": the product of two Gaussians, N(0.95, 0.125)."""
    scheduler = NoiseScheduler(
        SchedulerConfig(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            set_alpha_to_one=True,
        )
    )

    def log_probability(x, t):  # p(y | x_t), y = x_0 + 0.5 n: Gaussian in the mean of x_0 given x_t
        a = scheduler.alphas_cumprod[t]
        gain = a.sqrt() * 0.25 / (a * 0.25 + 1 - a)
        mean, variance = 0.7 + gain * (x - a.sqrt() * 0.7), 0.25 - gain * a.sqrt() * 0.25
        return (-((1.2 - mean) ** 2) / (2 * (variance + 0.25))).sum((1, 2, 3))

    def predict(x, t):
        a = scheduler.alphas_cumprod[t]
        clean = 0.7 + a.sqrt() * 0.25 / (a * 0.25 + 1 - a) * (x - a.sqrt() * 0.7)
        return scheduler.target(clean, (x - a.sqrt() * clean) / (1 - a).sqrt(), t)

    stops = DDIM().stops(scheduler, 200)
    assert stops[0].timestep == 999
    start = torch.randn(1, 1, 100, 200, generator=seeded())
    guided = classifier_guidance(scheduler, log_probability, 1.0)(predict)
    *_, last = DDIM()(guided, Run(start, scheduler, stops, seeded(1)))
    assert abs(last.latents.mean() - 0.95) < 0.02
    assert abs(last.latents.std() / 0.125**0.5 - 1) < 0.04


def test_pure_noise_and_a_network_that_predicts_noise():
    scheduler, x = NoiseScheduler(SchedulerConfig(rescale_betas_zero_snr=True)), torch.zeros(1, 1, 2, 2)
    loss = lambda x: x.sum((1, 2, 3))  # noqa: E731
    for guidance in (
        universal_guidance(scheduler, loss, 1.0),
        universal_guidance(scheduler, loss, 0.0, 1),
        classifier_guidance(scheduler, lambda x, t: loss(x), 1.0),
    ):
        with pytest.raises(ValueError, match="timestep 999 is pure noise, from which a network that predicts noise"):
            guidance(lambda x, t: x)(x, 999)
