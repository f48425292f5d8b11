"""The variational bound against torch's KL divergence, and in Gaussian worlds, whose density is known."""

import importlib
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from helpers import seeded
from running import script_inside

from minti.scheduler import NoiseScheduler

sys.path.append(str(Path(__file__).parents[2] / "examples"))
bound = importlib.import_module("variational_bound")


@pytest.mark.fast
@pytest.mark.parametrize("v", [0.0, 0.3, 1.0])
def test_every_term_is_a_kl_divergence(v):
    """Of the two normal distributions of a step; its part that a network can change is the notes' weight times the
    squared error of the noise, beta^2 / (2 sigma^2 alpha (1 - alpha-bar)) (`002`, 4.6 Q4; `003`, 26)."""
    scheduler, count = NoiseScheduler(), 1000
    clean, wrong, x = torch.randn(3, 1, 1, 1, 500, generator=seeded(0), dtype=torch.float64)
    error = (clean - wrong).square().mean()
    terms, without = bound.rates(scheduler, error.expand(count), v), bound.rates(scheduler, torch.zeros(count), v)
    for t in (1, 20, 400, 999):
        mean, variance = scheduler.posterior(clean, x, t, t - 1)
        predicted, sigma_squared = scheduler.posterior(wrong, x, t, t - 1, v)
        true, own = (
            torch.distributions.Normal(mean, variance**0.5),
            torch.distributions.Normal(predicted, sigma_squared**0.5),
        )
        torch.testing.assert_close(terms[t], torch.distributions.kl_divergence(true, own).mean(), rtol=1e-4, atol=1e-6)
        a, alpha_bar = 1 - scheduler.betas[t], scheduler.alphas_cumprod[t]
        weight = scheduler.betas[t] ** 2 / (2 * sigma_squared * a * (1 - alpha_bar))
        of_noise = error * alpha_bar / (1 - alpha_bar)
        torch.testing.assert_close((terms - without)[t], weight * of_noise, rtol=1e-3, atol=1e-6)


@pytest.mark.fast
@pytest.mark.parametrize(("std", "v", "gap"), [(1.0, 1.0, 2e-3), (0.3, 0.0, 0.3), (0.3, 1.0, 0.2)])
def test_in_a_gaussian_world_the_bound_is_minus_log_p(std, v, gap):
    """x_0 ~ N(0, std^2) and the ideal network, whose error is Var(x_0 | x_t). Of N(0, 1) the reverse steps are exactly
    normal with variance beta, and the bound is the entropy, 1/2 log(2 pi e std^2); of others it is above."""
    scheduler = NoiseScheduler()
    a = scheduler.alphas_cumprod.double()
    errors = std**2 * (1 - a) / (a * std**2 + 1 - a)
    total = bound.rates(scheduler, errors, v).sum().item() + bound.prior(scheduler, std**2)
    entropy = 0.5 * math.log(2 * math.pi * math.e * std**2)
    assert total == pytest.approx(entropy, abs=gap)
    assert std == 1 or total > entropy


def test_the_printed_terms_add_up_to_the_bound(tmp_path):
    folder = Path(__file__).parents[2] / "examples/concepts/red-diamond-pink-belt"
    done = script_inside("variational_bound.py", "--images", folder, "--output", tmp_path, "--quiet")
    nats = [float(cell) for cell in re.findall(r"^\| \d[^|]*\| (-?\d+) \|", done.stdout, re.MULTILINE)]
    assert len(nats) == 7
    assert float(re.search(r"(-?\d+) with v = 1", done.stdout)[1]) == pytest.approx(sum(nats), abs=5)
    assert {path.name for path in tmp_path.iterdir()} == {"rate_distortion.png", "page.png"}
