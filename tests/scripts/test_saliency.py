"""Saliency maps of networks whose maps are known, and the area under the curve by all pairs."""

import pytest
import torch
from helpers import seeded
from running import script_inside
from torch import nn

from saliency import area_under_curve, grad_cam, gradient, smooth_grad

pytestmark = pytest.mark.fast


def test_of_a_linear_network_both_gradients_are_its_weights():
    weights = torch.randn(3, 8, 8, generator=seeded())
    logit, x = lambda x: (x * weights).sum(dim=(1, 2, 3)), torch.randn(2, 3, 8, 8, generator=seeded(2))
    expected = weights.abs().amax(dim=0).expand(2, -1, -1)
    torch.testing.assert_close(gradient(logit, x), expected)
    torch.testing.assert_close(smooth_grad(logit, x, 0.5, 3, seeded()), expected)


def test_smooth_grad_is_the_gradient_of_the_smoothed_network():
    """Of x^3 per pixel, smoothed by N(0, s^2): x^3 + 3 s^2 x, whose slope is 3 x^2 + 3 s^2."""
    x = torch.tensor([-1.0, 0.0, 0.7, 2.0]).expand(1, 1, 1, 4)
    found = smooth_grad(lambda x: (x**3).sum(dim=(1, 2, 3)), x, 0.5, 20_000, seeded())
    torch.testing.assert_close(found[0, 0], 3 * x[0, 0, 0] ** 2 + 3 * 0.25, rtol=0.03, atol=0.03)


def test_grad_cam_after_a_global_average_is_cam():
    """relu(sum_k w_k A_k) / n of n positions (arXiv 1512.04150), where a linear layer follows the average."""
    torch.manual_seed(0)
    features, weights = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.SiLU()), torch.randn(5)
    x = torch.randn(2, 3, 8, 8, generator=seeded())
    for parameter in features.parameters():
        parameter.requires_grad_(False)  # as the judge's are
    found = grad_cam(lambda x: features(x).mean(dim=(2, 3)) @ weights, x, features[1])
    expected = (features(x) * weights[:, None, None]).sum(dim=1).relu() / 64
    torch.testing.assert_close(found, expected)
    assert (found > 0).any() and (found == 0).any()


def test_the_area_under_the_curve_by_all_pairs():
    values = torch.randint(4, (6, 6), generator=seeded()).float()  # with ties
    inside = torch.rand(6, 6, generator=seeded(2)) < 0.4
    pairs = values[inside][:, None] - values[~inside]
    expected = ((pairs > 0).double() + 0.5 * (pairs == 0).double()).mean().item()
    assert area_under_curve(values, inside) == pytest.approx(expected)
    assert area_under_curve(inside.float(), inside) == 1


def test_the_judge_is_explained_better_than_by_chance(tmp_path):
    said = script_inside("toybox/saliency.py", "--count", 12, "--times", 10, "--output", tmp_path).stdout
    areas = {line.split("|")[1].strip(): float(line.split("|")[2]) for line in said.splitlines() if "0." in line}
    assert areas["chance"] == pytest.approx(0.5, abs=0.03)
    assert areas["SmoothGrad"] > areas["gradient"] > 0.53
