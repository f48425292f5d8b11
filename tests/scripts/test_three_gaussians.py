"""Guidance on three Gaussians: scores, densities and samples where each is known."""

import importlib
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers import seeded
from running import script_inside

from minti.sampling import classifier_free_guidance
from minti.scheduler import NoiseScheduler, SchedulerConfig

sys.path.append(str(Path(__file__).parents[2] / "examples"))
three = importlib.import_module("three_gaussians")
pytestmark = pytest.mark.fast


@pytest.mark.parametrize("t", [50, 600])
def test_the_guided_noise_is_the_gradient_of_the_guided_density(t):
    """At a level of noise: -sqrt(1 - a) grad (s log p(x | c) + (1 - s) log p(x)), by numerical differences."""
    scheduler, s, h = NoiseScheduler(), 3.0, 1e-5
    a = scheduler.alphas_cumprod[t].item()
    variance = a * three.STD**2 + 1 - a
    label, x = torch.tensor([0, 1, 2, 1]), torch.randn(4, 2, generator=seeded(), dtype=torch.float64)

    def log_guided(x):
        each = -(x[:, None] - a**0.5 * three.MEANS.double()).square().sum(dim=2) / (2 * variance)
        return s * each[torch.arange(4), label] + (1 - s) * each.logsumexp(dim=1)

    steps = h * torch.eye(2, dtype=torch.float64)
    score = torch.stack([(log_guided(x + step) - log_guided(x - step)) / (2 * h) for step in steps], dim=1)
    context = label.double()[:, None, None]
    network = lambda x, t, context: three.network(scheduler, x, t, context)  # noqa: E731
    predict = classifier_free_guidance(network, context, torch.full_like(context, three.EVERYTHING), s)
    noise = predict(x[:, :, None, None], t).flatten(1)
    torch.testing.assert_close(noise, -((1 - a) ** 0.5) * score, rtol=1e-4, atol=1e-4)


def test_at_scale_one_samples_and_density_are_those_of_the_class():
    label, n = torch.full((3000,), 2), 3000
    x = three.guided_samples(NoiseScheduler(SchedulerConfig(set_alpha_to_one=True)), label, 1.0, 200)
    torch.testing.assert_close(x.mean(dim=0), three.MEANS[2].double(), rtol=0, atol=4 * three.STD / n**0.5 + 0.01)
    torch.testing.assert_close(x.std(dim=0).mean().item(), three.STD, rtol=0.04, atol=0)
    line = torch.linspace(-4, 4, 201, dtype=torch.float64)
    grid, area = torch.cartesian_prod(line, line), ((line[1] - line[0]) ** 2).item()
    density = three.guided_density(grid, 2, 1.0, area)
    expected = torch.distributions.Normal(three.MEANS[2].double(), three.STD).log_prob(grid).sum(dim=1).exp()
    torch.testing.assert_close(density, expected, rtol=1e-4, atol=1e-6)


def test_guidance_leads_away_from_the_other_classes(tmp_path):
    """Every class's samples move outwards with the scale, further than its guided density, and spread less."""
    said = script_inside("three_gaussians.py", "--count", 300, "--steps", 50, "--output", tmp_path).stdout
    rows = [[float(cell.strip(" %")) for cell in line.strip("|").split("|")] for line in said.splitlines()[2:6]]
    assert [row[0] for row in rows] == [1, 2, 4, 8]
    for before, after in pairwise(rows):
        assert after[1] > before[1] and after[2] > before[2] + 0.1 and after[3] < before[3]
        assert after[2] > after[1] + 0.1
    assert (tmp_path / "three_gaussians.png").is_file()
