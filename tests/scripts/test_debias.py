"""Debiasing: the projection and its calibration by their defining equations, and the command."""

import math

import pytest
import torch
from helpers import seeded
from running import script_inside

from debias import calibrated, projection, unevenness


@pytest.mark.fast
def test_the_projection_removes_the_directions_and_nothing_else():
    """P A = 0, P P = P, P = P^T, and what is orthogonal to A stays; also where the columns depend on one another."""
    a = torch.randn(10, 3, generator=seeded(), dtype=torch.float64)
    a = torch.cat([a, a[:, :1] - 2 * a[:, 1:2]], dim=1)
    p, zero = projection(a), torch.zeros(10, 4, dtype=torch.float64)
    torch.testing.assert_close(p @ a, zero)
    torch.testing.assert_close(p @ p, p)
    torch.testing.assert_close(p, p.T)
    other = torch.linalg.qr(a[:, :3], mode="complete").Q[:, 3:]
    torch.testing.assert_close(p @ other, other)
    torch.testing.assert_close(
        p, torch.eye(10).double() - a[:, :3] @ torch.linalg.inv(a[:, :3].T @ a[:, :3]) @ a[:, :3].T
    )


@pytest.mark.fast
def test_the_calibration_minimises_its_loss():
    """The gradient of |P' - P|^2 + weight / n sum_i |P' d_i|^2 vanishes at P', by autograd."""
    p = projection(torch.randn(8, 2, generator=seeded(), dtype=torch.float64))
    d = torch.randn(5, 8, generator=seeded(2), dtype=torch.float64)
    found = calibrated(p, d, 7.0).requires_grad_()
    loss = (found - p).square().sum() + 7.0 / 5 * (d @ found.T).square().sum()
    loss.backward()
    torch.testing.assert_close(found.grad, torch.zeros_like(found), rtol=0, atol=1e-10)
    assert (d @ found.T).norm() < (d @ p.T).norm()


@pytest.mark.fast
def test_unevenness_is_the_divergence_from_even_shares():
    shares = torch.rand(6, generator=seeded(), dtype=torch.float64)
    shares = shares / shares.sum()
    even = torch.distributions.Categorical(torch.full((6,), 1 / 6, dtype=torch.float64))
    expected = torch.distributions.kl_divergence(torch.distributions.Categorical(shares), even)
    torch.testing.assert_close(unevenness(shares), expected)
    assert unevenness(torch.full((6,), 1 / 6)).item() == pytest.approx(0, abs=1e-6)
    assert unevenness(torch.eye(6)[0]).item() == pytest.approx(math.log(6))


def test_the_command(tmp_path):
    said = script_inside("toybox/debias.py", "--count", 8, "--training-steps", 1, "--output", tmp_path).stdout
    ways = [line.split("|")[1].strip() for line in said.splitlines() if line.startswith("| ")]
    assert ways == ["way", "as it is", "projection", "projection, calibrated", "soft prompt"]
    assert (tmp_path / "debias.png").is_file()
