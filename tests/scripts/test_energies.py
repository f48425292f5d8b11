"""Energy differences and Langevin dynamics from scores, where both are known."""

import importlib
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from helpers import seeded
from running import script

from minti.scheduler import NoiseScheduler

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "examples"))
energies = importlib.import_module("energies")


@pytest.mark.parametrize("t", [50, 500, 950])
def test_the_integral_of_a_gaussian_s_score_is_its_energy(t):
    """E(x) = |x - sqrt(a) mean|^2 / (2 (a std^2 + 1 - a)); one point is enough where the score is a straight line."""
    scheduler = NoiseScheduler()
    mean, std, a = 1.5, 0.4, scheduler.alphas_cumprod[t].item()
    score = energies.gaussian_score(mean, std, scheduler, t)
    start, end = torch.randn(2, 1, 4, 8, 8, generator=seeded(0), dtype=torch.float64)
    energy = lambda x: ((x - a**0.5 * mean) ** 2).sum().item() / (2 * (a * std**2 + 1 - a))  # noqa: E731
    for points in (1, 20):
        got = energies.energy_difference(score, start, end, points)
        assert got == pytest.approx(energy(end) - energy(start), rel=1e-6)


def test_the_integral_of_a_mixture_s_score_does_not_depend_on_the_path():
    """p = (N(m, s^2) + N(-m, s^2)) / 2: E = -log p, grad log p = (m tanh(m . x / s^2) - x) / s^2."""
    m, s = torch.randn(1, 2, 3, 3, generator=seeded(1), dtype=torch.float64), 0.8
    inner = lambda x: (m * x).sum(dim=(1, 2, 3), keepdim=True) / s**2  # noqa: E731
    score = lambda x: (m * torch.tanh(inner(x)) - x) / s**2  # noqa: E731
    energy = lambda x: ((x**2).sum() / (2 * s**2) - inner(x).abs() - torch.log1p(torch.exp(-2 * inner(x).abs()))).item()  # noqa: E731
    start, corner, end = torch.randn(3, 1, 2, 3, 3, generator=seeded(2), dtype=torch.float64) * 2
    straight = energies.energy_difference(score, start, end, 2000)
    detour = sum(energies.energy_difference(score, *ends, 2000) for ends in ((start, corner), (corner, end)))
    assert straight == pytest.approx(energy(end) - energy(start), rel=1e-4)
    assert detour == pytest.approx(straight, rel=1e-4)


def test_langevin_dynamics_draws_from_the_gaussian():
    """In steps of size h the walkers' variance goes to v / (1 - h / (2 v)), as (1 - h/v)^2 var + 2 h = var says."""
    scheduler, t, size, n = NoiseScheduler(), 400, 0.1, 40_000
    a = scheduler.alphas_cumprod[t].item()
    variance = a * 0.4**2 + 1 - a
    walk = energies.langevin(
        energies.gaussian_score(1.5, 0.4, scheduler, t), torch.zeros(1, 1, 200, 200), size, seeded(0)
    )
    x = [next(walk) for _ in range(150)][-1]
    expected = variance / (1 - size / (2 * variance))
    assert x.mean().item() == pytest.approx(a**0.5 * 1.5, abs=5 * math.sqrt(expected / n))
    assert x.var().item() == pytest.approx(expected, rel=5 * math.sqrt(2 / n))


def test_without_its_noise_every_walker_climbs_to_the_peak():
    scheduler, t, size = NoiseScheduler(), 400, 0.1
    a = scheduler.alphas_cumprod[t].item()
    begin = torch.randn(1, 4, 8, 8, generator=seeded(0))
    walk = energies.langevin(energies.gaussian_score(1.5, 0.4, scheduler, t), begin, size, noise=False)
    x = [next(walk) for _ in range(400)][-1]
    torch.testing.assert_close(x, torch.full_like(x, a**0.5 * 1.5))


def test_the_score_of_two_modes_is_the_gradient_of_their_density():
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 1, 3, 3).requires_grad_()
    for sigma in (1.0, 0.1):
        std = (0.05**2 + sigma**2) ** 0.5
        mixture = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(torch.tensor([0.8, 0.2], dtype=torch.float64)),
            torch.distributions.Normal(torch.tensor([-1.0, 1.0], dtype=torch.float64), std),
        )
        (gradient,) = torch.autograd.grad(mixture.log_prob(x).sum(), x)
        torch.testing.assert_close(energies.two_modes()(sigma)(x), gradient)


def test_annealed_walkers_find_the_modes_shares_and_others_stay_where_they_begin():
    """10,000 walkers from N(0, 1): half of them begin left of the middle, where 0.8 belong.

    Within five standard errors (0.02), and annealed 0.01 more: so few steps a level have not settled yet.
    """
    plain, annealed = energies.modes_found()
    assert plain == pytest.approx(0.5, abs=0.02)
    assert annealed == pytest.approx(0.8, abs=0.03)


def test_stein_s_identity_tells_samples_from_others():
    """-E[x score(x)] = 1 for samples of p, by partial integration; 4 for samples twice as wide."""
    score, x = (lambda x: -x / 9), 3 * torch.randn(1, 1, 300, 300, generator=seeded(0), dtype=torch.float64)
    assert energies.stein(score, x) == pytest.approx(1, abs=0.03)
    assert energies.stein(score, 2 * x) == pytest.approx(4, abs=0.12)


def test_the_toybox_knows_which_image_is_meant(tmp_path):
    """The energy rises from the image that the prompt names to the other, and falls under the other's prompt."""
    done = script("energies.py", "--output", tmp_path, "--steps", 10, "--points", 16)
    under = dict(re.findall(r"under '(.*)': (-?[\d.]+);", done.stdout))
    assert float(under["a red star"]) > 10
    assert float(under["a blue moon"]) < -10
    assert (tmp_path / "page.png").is_file()
