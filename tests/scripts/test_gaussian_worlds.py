"""A policy guided by values, and a PDE solved from measurements, where both answers have closed forms."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from helpers import seeded
from running import script_inside

from minti.guidance.gradients import classifier_guidance
from minti.scheduler import NoiseScheduler

sys.path.append(str(Path(__file__).parents[2] / "examples"))
guided_policy, heat_equation = (importlib.import_module(name) for name in ("guided_policy", "heat_equation"))
pytestmark = pytest.mark.fast


# --- the policy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("s", [0.5, 2.0])
def test_the_tilted_actions_are_the_expert_s_times_the_exponential_of_the_value(s):
    """p(a) e^{s a} / Z, with Z by quadrature."""
    a = torch.linspace(-5, 5, 4001, dtype=torch.float64)
    density = guided_policy.actions().log_prob(a).exp() * (s * a).exp()
    expected = density / torch.trapezoid(density, a)
    torch.testing.assert_close(guided_policy.actions(tilt=s).log_prob(a).exp(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("t", [100, 700])
def test_the_value_of_noisy_actions_gives_the_score_of_the_tilted_policy(t):
    """log E[e^{s V(a_0)} | a_t], by quadrature over a_0, whose gradient takes the expert's score to the other."""
    scheduler, s, h = NoiseScheduler(), 1.5, 1e-4
    a = scheduler.alphas_cumprod[t].item()
    x = torch.randn(20, 1, 1, 1, generator=seeded(), dtype=torch.float64)
    clean = torch.linspace(-6, 6, 6001, dtype=torch.float64)

    def log_tilted(x):  # log of the integral of p(a_0) e^{s a_0} N(x; sqrt(a) a_0, 1 - a)
        noised = torch.distributions.Normal(a**0.5 * clean, (1 - a) ** 0.5).log_prob(x.flatten()[:, None])
        return (guided_policy.actions().log_prob(clean) + s * clean + noised).logsumexp(dim=1)

    expected = (log_tilted(x + h) - log_tilted(x - h)) / (2 * h)
    by = guided_policy.value_of_noisy(scheduler, s)
    noise = classifier_guidance(scheduler, by, 1.0)(guided_policy.policy(scheduler))(x, t)
    torch.testing.assert_close(scheduler.score_from_noise(noise, t).flatten(), expected, rtol=1e-3, atol=1e-3)


def test_guided_actions_have_the_shares_of_the_tilted_policy():
    """e^{2 s} to 1 at scale s, within four standard errors; by V(a_t) they go beyond the expert's."""
    scheduler, n = NoiseScheduler(), 2000
    x = guided_policy.sampled(scheduler, guided_policy.value_of_noisy(scheduler, 0.5), 1.0, n, 100)
    share = 1 / (1 + torch.tensor(-1.0).exp().item())
    assert (x > 0).double().mean().item() == pytest.approx(share, abs=4 * (share * (1 - share) / n) ** 0.5)
    naive = guided_policy.sampled(scheduler, guided_policy.value, 2.0, 500, 100)
    assert naive.mean() > guided_policy.actions(tilt=2.0).mean + 0.3


# --- the heat equation ------------------------------------------------------------------------------------------------


def test_kriging_is_bayes_rule():
    """Precisions add: (C^-1 + H^T H / noise^2)^-1, and the mean from it; and the field solves the heat equation."""
    p = heat_equation.problem(8, equation=True)
    mean, covariance = heat_equation.kriging(p)
    posterior = torch.linalg.inv(torch.linalg.inv(p.covariance) + p.h.T @ p.h / heat_equation.NOISE**2)
    torch.testing.assert_close(covariance, posterior, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(mean, posterior @ p.h.T @ p.y / heat_equation.NOISE**2, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(p.h @ p.truth, p.y)
    # Euler's method on the ring, with the second difference in place of the derivative.
    u, steps, width = p.truth[: heat_equation.N], 2000, 1 / heat_equation.N
    for _ in range(steps):
        u = u + heat_equation.DIFFUSED / steps * (u.roll(1) + u.roll(-1) - 2 * u) / width**2
    torch.testing.assert_close(u, p.truth[heat_equation.N :], rtol=0, atol=0.03)


@pytest.mark.parametrize("t", [50, 500])
def test_exact_guidance_gives_the_score_of_the_posterior(t):
    """x_0 given y is N(m, S), so x_t given y has the score -(a S + (1 - a) I)^-1 (x - sqrt(a) m)."""
    scheduler, p = NoiseScheduler(), heat_equation.problem(8, equation=True)
    a, n = scheduler.alphas_cumprod[t].item(), 2 * heat_equation.N
    mean, covariance = heat_equation.kriging(p)
    x = torch.randn(3, 2, 1, heat_equation.N, generator=seeded(), dtype=torch.float64)
    plain = lambda x, t: scheduler.noise_from_clean(x, heat_equation.clean(p, a, x).view_as(x), t)  # noqa: E731
    noise = heat_equation.guidance(scheduler, p, exact=True)(plain)(x, t)
    total = a * covariance + (1 - a) * torch.eye(n, dtype=torch.float64)
    expected = -torch.linalg.solve(total, (x.flatten(1) - a**0.5 * mean).T).T
    torch.testing.assert_close(scheduler.score_from_noise(noise, t).flatten(1), expected, rtol=1e-3, atol=1e-3)


def test_both_commands(tmp_path):
    said = script_inside("heat_equation.py", "--count", 16, "--steps", 40, "--output", tmp_path).stdout
    errors = {line.split("|")[1].strip(): float(line.split("|")[2]) for line in said.splitlines()[2:8]}
    assert errors["measurements and equation: exact guidance"] < 0.7 * errors["measurements: exact guidance"]
    assert (tmp_path / "heat_equation.png").is_file()
    said = script_inside("guided_policy.py", "--count", 200, "--steps", 40, "--output", tmp_path / "policy").stdout
    assert "| mean squared error | 0 | 0 | 100 |" in said
