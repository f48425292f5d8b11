"""Two models multiplied: the precisions of Gaussians add, whatever the networks predict."""

import pytest
import torch
from helpers import seeded
from running import script_inside

from minti.scheduler import NoiseScheduler, SchedulerConfig
from two_models import multiplied


@pytest.mark.fast
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_precisions_of_gaussians_add(prediction_type, gamma):
    """At a level of noise, p (p_other(x | c) / p_other(x))^gamma of Gaussians has precision V^-1 + gamma (V_c^-1 -
    V_0^-1), and the score that torch's densities of the three give; the slide's sum is 1 + gamma times the noise."""
    scheduler, t = NoiseScheduler(SchedulerConfig(prediction_type=prediction_type)), 400
    a = scheduler.alphas_cumprod[t].double()
    x = torch.randn(30, 1, 1, 1, generator=seeded(), dtype=torch.float64).requires_grad_()
    densities = [
        torch.distributions.Normal(a.sqrt() * m, (a * s**2 + 1 - a).sqrt())
        for m, s in ((0.5, 1.0), (-1.0, 0.3), (0.2, 0.8))
    ]

    def network(density):
        def predict(x, t):
            noise = scheduler.noise_from_score((density.mean - x) / density.variance, t)
            return scheduler.target(scheduler.clean_from_noise(x, noise, t), noise, t)

        return predict

    own, conditional, unconditional = map(network, densities)
    log_p, log_c, log_0 = (density.log_prob(x) for density in densities)
    (expected,) = torch.autograd.grad((log_p + gamma * (log_c - log_0)).sum(), x)
    x = x.detach()
    output = multiplied(scheduler, conditional, unconditional, gamma)(own)(x, t)
    score = scheduler.score_from_noise(scheduler.clean_and_noise(output, x, t)[1], t)
    torch.testing.assert_close(score, expected, rtol=1e-3, atol=1e-3)
    precision = 1 / densities[0].variance + gamma * (1 / densities[1].variance - 1 / densities[2].variance)
    slope = (score[1:] - score[:-1]) / (x[1:] - x[:-1])
    torch.testing.assert_close(slope, torch.full_like(slope, -precision.item()), rtol=1e-2, atol=1e-2)

    twice = multiplied(scheduler, own, None, gamma)(own)(x, t)
    noise = scheduler.clean_and_noise(own(x, t), x, t)[1]
    torch.testing.assert_close(scheduler.clean_and_noise(twice, x, t)[1], (1 + gamma) * noise, rtol=1e-3, atol=1e-3)


def test_the_command(tmp_path):
    options = ("--count", 2, "--steps", 2, "--training-steps", 2, "--images", 8, "--gammas", 1, "--output", tmp_path)
    said = script_inside("toybox/two_models.py", *options).stdout
    assert len([line for line in said.splitlines() if line.startswith("| ")]) == 7  # with the heading
    assert (tmp_path / "two_models.png").is_file()
