"""FID, KID, Inception Score, precision and recall, on distributions whose values are known."""

import pytest
import torch
from helpers import seeded

from minti.evaluation.distribution import (
    Gaussian,
    fit_gaussian,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_and_recall,
)


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


def test_the_kernel_distance_by_loops():
    """MMD^2 as its definition says: pairs of different images within each set, and all pairs of the two."""
    a, b = draw(7, 3, seed=1), draw(5, 3, seed=2) + 1
    kernel = lambda x, y: (sum(u * v for u, v in zip(x.tolist(), y.tolist())) / 3 + 1) ** 3  # noqa: E731
    within = [
        sum(kernel(x, y) for x in s for y in s if x is not y) / (len(s) * (len(s) - 1)) for s in map(list, (a, b))
    ]
    expected = sum(within) - 2 * sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))
    assert kernel_distance(a, b) == pytest.approx(expected)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 1.0), (0.3, 1.4)])
def test_the_kernel_distance_is_unbiased_with_eight_images(mean, std):
    """On a line the kernel is 1 + 3 x y + 3 x^2 y^2 + x^3 y^3, so the distance of N(0, 1) and N(m, s^2) is
    3 m^2 + 3 (m^2 + s^2 - 1)^2 + (m^3 + 3 m s^2)^2; within four standard errors, where FID is far above."""
    expected = 3 * mean**2 + 3 * (mean**2 + std**2 - 1) ** 2 + (mean**3 + 3 * mean * std**2) ** 2
    pairs = [(draw(8, 1, seed=2 * i), mean + std * draw(8, 1, seed=2 * i + 1)) for i in range(1000)]
    found = torch.tensor([kernel_distance(*pair) for pair in pairs])
    assert found.mean().item() == pytest.approx(expected, abs=4 * found.std().item() / len(found) ** 0.5)
    if expected == 0:
        assert min(frechet_distance(*map(fit_gaussian, pair)) for pair in pairs) > 0


def test_the_inception_score_counts_classes():
    """n for n classes evenly and surely, 1 where all answers are the same; else by torch's own divergence."""
    for n in (2, 5):
        assert inception_score(torch.eye(5)[:n].repeat(3, 1)) == pytest.approx(n)
    assert inception_score(torch.eye(4)[[2, 2, 2]]) == pytest.approx(1)
    p = draw(6, 4).softmax(dim=1)
    marginal = torch.distributions.Categorical(p.mean(dim=0))
    expected = torch.distributions.kl_divergence(torch.distributions.Categorical(p), marginal).mean().exp()
    assert inception_score(p) == pytest.approx(expected.item())


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
