"""Interpolation (lerp and slerp): variance, angles and end points."""

import importlib
from pathlib import Path

import pytest
import torch
from helpers import seeded

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def mix(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("interpolate")


@pytest.mark.parametrize("share", [0.25, 0.5, 0.7])
def test_slerp_keeps_the_variance_and_lerp_does_not(mix, share):
    """Of two independent standard normal noises: 1, and (1 - s)^2 + s^2."""
    a, b = (torch.randn(2, 4, 200, 200, generator=seeded(seed)) for seed in (1, 2))
    assert mix.slerp(a, b, share).var().item() == pytest.approx(1, abs=0.02)
    assert mix.lerp(a, b, share).var().item() == pytest.approx((1 - share) ** 2 + share**2, abs=0.02)


def test_slerp_has_an_even_angle(mix):
    """In the plane: from (1, 0) to (0, 1) by 30°, each image by its own angle."""
    a, b = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.5, 0.75**0.5]])
    expected = torch.tensor([[0.75**0.5, 0.5], [torch.pi / 9, torch.pi / 9]])
    expected[1] = torch.stack([expected[1, 0].cos(), expected[1, 1].sin()])
    torch.testing.assert_close(mix.slerp(a, b, 1 / 3), expected)


def test_the_notes_mixture(mix):
    """`002`, 15, class mixing: 0.7 [human] + 0.3 [food]."""
    human, food = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    torch.testing.assert_close(mix.lerp(human, food, 0.3), torch.tensor([0.7, 0.3, 0]))


@pytest.mark.parametrize("way", ["lerp", "slerp"])
def test_the_ends_are_the_ends(mix, way):
    a, b = (torch.randn(1, 4, 8, 8, generator=seeded(seed)) for seed in (1, 2))
    between = getattr(mix, way)
    assert torch.equal(between(a, b, 0.0), a)
    assert torch.equal(between(a, b, 1.0), b)
