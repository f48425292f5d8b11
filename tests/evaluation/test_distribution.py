"""Fréchet distance (FID), precision and recall, on distributions whose values are known."""

import pytest
import torch
from helpers import seeded

from minti.evaluation.distribution import Gaussian, fit_gaussian, frechet_distance, precision_and_recall


def draw(n, d=4, seed=0):
    return torch.randn(n, d, generator=seeded(seed), dtype=torch.float64)


def test_distance_of_round_gaussians():
    """N(0, I) and N(m, s^2 I): |m|^2 + d (1 - s)^2."""
    mean, s, d = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), 2.5, 3
    a = Gaussian(torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64))
    b = Gaussian(mean, s**2 * torch.eye(d, dtype=torch.float64))
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + 0.25 + d * (1 - s) ** 2)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


def test_distance_of_tilted_gaussians():
    """Tr (A B)^(1/2) is the sum of the roots of the eigenvalues of A B, which is not symmetric."""
    a, b = (torch.cov(draw(50, seed=seed).T) for seed in (1, 2))
    b = b @ torch.diag(torch.tensor([1.0, 4.0, 9.0, 0.5], dtype=torch.float64)) @ b
    roots = torch.linalg.eigvals(a @ b).real.sqrt().sum()
    zero = torch.zeros(4, dtype=torch.float64)
    expected = (a.trace() + b.trace() - 2 * roots).item()
    assert expected > 1
    assert frechet_distance(Gaussian(zero, a), Gaussian(zero, b)) == pytest.approx(expected)


def test_samples_come_near_the_distance_of_their_distributions():
    a, b = fit_gaussian(draw(20_000, seed=1)), fit_gaussian(3 * draw(20_000, seed=2) + 2)
    assert frechet_distance(a, b) == pytest.approx(4 * (4 + 4), rel=0.03)
    assert a.covariance == pytest.approx(torch.eye(4, dtype=torch.float64), abs=0.05)


def test_the_checks_of_the_notes():
    """A set and itself: nothing. Two halves of one set: almost nothing. Noise: very far. Also with few images."""
    features = draw(400) @ draw(4, 12, seed=3)  # twelve features, of which only four are free
    whole, halves = fit_gaussian(features), [fit_gaussian(half) for half in features.split(200)]
    noise = fit_gaussian(20 * draw(400, 12, seed=4) + 5)
    assert frechet_distance(whole, whole) == pytest.approx(0, abs=1e-5)
    between = frechet_distance(*halves)
    assert 0 < between < 0.01 * frechet_distance(whole, noise)
    assert frechet_distance(whole, noise) > 1000


def test_precision_and_recall_by_hand():
    """On a line with k = 1: real points 0, 1, 10, whose balls have radius 1, 1 and 9; drawn points 1.5, -5, 30."""
    real, drawn = (torch.tensor(points)[:, None] for points in ([0.0, 1.0, 10.0], [1.5, -5.0, 30.0]))
    precision, recall = precision_and_recall(real, drawn, k=1)
    assert precision == pytest.approx(1 / 3)  # only 1.5
    assert recall == 1  # the balls of 1.5 and -5 have radius 6.5, that of 30 has 28.5 and reaches 10


def test_precision_and_recall_of_gaussians():
    wide, narrow = draw(500, 2, seed=5), 0.1 * draw(500, 2, seed=6)
    precision, recall = precision_and_recall(wide, narrow)
    assert precision > 0.95
    assert recall < 0.2
    assert precision_and_recall(narrow, wide) == (recall, precision)
    assert precision_and_recall(wide, wide) == (1, 1)
    assert precision_and_recall(wide, wide + 100) == (0, 0)
    with pytest.raises(ValueError, match="no 3-th neighbour"):
        precision_and_recall(wide[:3], narrow)
