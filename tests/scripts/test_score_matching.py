"""Score matching against the truth: a mixture of Gaussians, the minimiser among linear scores, Gaussian posteriors."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from helpers import seeded
from running import script

from minti.scheduler import NoiseScheduler

sys.path.append(str(Path(__file__).parents[2] / "examples"))
score_matching = importlib.import_module("score_matching")


@pytest.mark.fast
def test_implicit_score_matching_is_the_distance_to_the_true_score():
    """E[tr(grad s) + 1/2 |s|^2] = E[1/2 |s - grad log p|^2] - E[1/2 |grad log p|^2], by quadrature, for a network s."""
    double = {"dtype": torch.float64}
    parts = torch.distributions.Independent(
        torch.distributions.Normal(torch.tensor([[-1.0, 0.5], [1.0, -0.3]], **double), torch.tensor(0.4, **double)), 1
    )
    p = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.tensor([0.7, 0.3], **double)), parts
    )
    line = torch.linspace(-4, 4, 161, **double)
    x = torch.cartesian_prod(line, line).requires_grad_()
    log_p = p.log_prob(x)
    (truth,) = torch.autograd.grad(log_p.sum(), x)
    weights = log_p.detach().exp() * (line[1] - line[0]) ** 2
    assert weights.sum().item() == pytest.approx(1, abs=1e-8)
    torch.manual_seed(0)
    s = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()
    got = (weights * score_matching.implicit_loss(s, x)).sum()
    expected = (weights * ((s(x) - truth).square() - truth.square()).sum(dim=1) / 2).sum()
    assert got.item() == pytest.approx(expected.item(), abs=1e-8)


@pytest.mark.fast
def test_the_best_linear_score_is_that_of_the_gaussian_with_the_samples_moments():
    """Where s(x) = A x + b, the loss is least at A = -Sigma^-1, b = Sigma^-1 mu: its gradient vanishes there."""
    x = torch.randn(200, 3, generator=seeded(0), dtype=torch.float64)
    x = x @ torch.tensor([[1.0, 0.0, 0.0], [0.7, 0.5, 0.0], [-0.2, 0.3, 2.0]], dtype=torch.float64) + 1.5
    mean, sigma = x.mean(dim=0), torch.cov(x.T, correction=0)
    linear = torch.nn.Linear(3, 3).double()
    with torch.no_grad():
        linear.weight.copy_(-torch.linalg.inv(sigma))
        linear.bias.copy_(torch.linalg.solve(sigma, mean))
    loss = score_matching.implicit_loss(linear, x).mean()
    loss.backward()
    for parameter in linear.parameters():
        torch.testing.assert_close(parameter.grad, torch.zeros_like(parameter), rtol=0, atol=1e-12)
    with torch.no_grad():
        linear.weight += 0.01
    assert score_matching.implicit_loss(linear, x).mean() > loss


@pytest.mark.fast
@pytest.mark.parametrize("t", [0, 300])
def test_denoising_score_matching_is_the_diffusion_loss_over_the_noise_s_variance(t):
    """E[|s(x_t) - grad log q(x_t | x_0)|^2] / d, where grad log q = -epsilon / sigma and s = -noise / sigma."""
    scheduler, x = NoiseScheduler(), torch.randn(50, 2, generator=seeded(0))
    got = score_matching.denoising_loss(torch.tanh, x, scheduler, t, seeded(1))
    epsilon, a = torch.randn(50, 2, 1, 1, generator=seeded(1)).flatten(1), scheduler.alphas_cumprod[t]
    mean, deviation = a.sqrt() * x, (1 - a).sqrt()
    noisy = (mean + deviation * epsilon).requires_grad_()
    (wanted,) = torch.autograd.grad(torch.distributions.Normal(mean, deviation).log_prob(noisy).sum(), noisy)
    torch.testing.assert_close(got, (-torch.tanh(noisy) / deviation - wanted).square().mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.fast
@pytest.mark.parametrize("t", [50, 400, 800])
def test_the_variance_of_the_clean_image_is_that_of_a_gaussian_posterior(t):
    """x_0 ~ N(0, Sigma): Cov(x_0 | x_t) = Sigma - a Sigma (a Sigma + (1 - a) I)^-1 Sigma; where Sigma is diagonal, so
    is the Jacobian, and a single probe is exact."""
    scheduler, eye = NoiseScheduler(), torch.eye(4, dtype=torch.float64)
    a = scheduler.alphas_cumprod[t].double()
    mixed = torch.randn(4, 4, generator=seeded(0), dtype=torch.float64)
    for sigma, probes, close in (
        (torch.diag(torch.tensor([0.1, 0.5, 1.0, 3.0]).double()), 1, 1e-5),
        (mixed @ mixed.T, 40_000, 0.03),
    ):
        inverse = torch.linalg.inv(a * sigma + (1 - a) * eye)
        noise_of = lambda x, inverse=inverse: (1 - a).sqrt() * x @ inverse  # noqa: E731   E[epsilon | x_t]
        x = torch.randn(1, 4, generator=seeded(1), dtype=torch.float64)
        got = score_matching.clean_variance(noise_of, x, scheduler, t, probes, seeded(2))
        expected = (sigma - a * sigma @ inverse @ sigma).diagonal()
        torch.testing.assert_close(got, expected, rtol=close, atol=close * expected.max().item())


def test_the_loss_is_known_without_the_noise(tmp_path):
    """The toybox's diffusion loss by both estimates, within four standard errors; and small networks learn scores."""
    done = script("score_matching.py", "--training-steps", 400, "--num-images", 1, "--probes", 4, "--output", tmp_path)
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) ± ([\d.]+) \| ([-\d.]+) ± ([\d.]+) \|$", done.stdout, re.MULTILINE)
    assert len(rows) == 4
    for _, denoising, error, implicit, other in rows:
        assert abs(float(denoising) - float(implicit)) < 4 * (float(error) ** 2 + float(other) ** 2) ** 0.5
    for name in ("implicit", "denoising"):
        assert float(re.search(rf"with noise \| {name} \| ([\d.]+) \|", done.stdout)[1]) < 5
    assert {path.name for path in tmp_path.iterdir()} == {"scores.png", "uncertainty.png"}
