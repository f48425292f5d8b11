"""Score distillation: its gradient is the formula's, nothing of it comes through the network, and where the picture's
distribution is a Gaussian it leads to the mean."""

import pytest
import torch
from helpers import seeded

from minti.distillation.score_distillation import Draw, Drawing, distillation_loss, score_distillation
from minti.scheduler import NoiseScheduler

MEAN, STD = 0.7, 0.4


class World:
    """As much of a model as the loss asks for; the data are a Gaussian, so the perfect network is a formula."""

    scheduler = NoiseScheduler()

    def predict(self, x, t):
        a = self.scheduler.alpha_bar(t)
        return (1 - a) ** 0.5 * (x - a**0.5 * MEAN) / (a * STD**2 + 1 - a)


def gradient_in_the_world(latents, draw, **options):
    x = latents.clone().requires_grad_()
    distillation_loss(World(), World().predict, x, draw, **options).backward()
    return x.grad


def test_the_expected_gradient_on_a_gaussian():
    """E over the noise of w (epsilon_hat - epsilon) = w sqrt(a (1 - a)) (x - mean) / (a std^2 + 1 - a)."""
    x, t, n = torch.full((1, 1, 1, 1), 2.0), 300, 40_000
    draw = Draw(t, torch.randn(n, 1, 1, 1, generator=seeded(0)))
    found = gradient_in_the_world(x.expand(n, 1, 1, 1), draw)
    a = World.scheduler.alpha_bar(t)
    expected = (1 - a) * (a * (1 - a)) ** 0.5 * (x - MEAN) / (a * STD**2 + 1 - a)
    assert abs(found.mean() - expected) < 4 * found.std() / n**0.5
    assert abs(expected) > 20 * found.std() / n**0.5  # so that zero would be told from it


def test_with_the_jacobian_it_is_the_gradient_of_the_loss():
    """Of w / 2 |epsilon_hat - epsilon|^2, whose inner derivative is known here."""
    x, t = torch.randn(3, 4, 2, 2, generator=seeded(1)), 500
    draw, a = Draw(t, torch.randn(3, 4, 2, 2, generator=seeded(2))), World.scheduler.alpha_bar(t)
    slope = a**0.5 * (1 - a) ** 0.5 / (a * STD**2 + 1 - a)
    torch.testing.assert_close(gradient_in_the_world(x, draw, jacobian=True), slope * gradient_in_the_world(x, draw))


def test_beside_a_source_the_same_picture_has_no_gradient():
    """And the noise drops out: the gradient of another one is the difference of the predictions."""
    x, source = (torch.randn(2, 4, 2, 2, generator=seeded(i)) for i in (3, 4))
    draw, a = Draw(400, torch.randn(2, 4, 2, 2, generator=seeded(5))), World.scheduler.alpha_bar(400)
    beside = lambda other: (World().predict, other)  # noqa: E731
    assert gradient_in_the_world(x, draw, source=beside(x)).abs().max() == 0
    expected = (1 - a) * (a * (1 - a)) ** 0.5 * (x - source) / (a * STD**2 + 1 - a)
    torch.testing.assert_close(gradient_in_the_world(x, draw, source=beside(source)), expected, rtol=1e-4, atol=1e-6)


def test_the_gradient_of_a_model_is_the_noise_s_difference(tiny):
    """dx / dtheta carries it on: here x = 2 theta."""

    class Doubled(Drawing):
        def forward(self):
            return 2 * self.latents

    drawing = Doubled(torch.randn(2, 4, 8, 8, generator=seeded(6)))
    loop = score_distillation(tiny, drawing, ["a toy", "a cat"], steps=1, guidance_scale=1, generator=seeded(7))
    draw = loop.draw(seeded(8))
    loop.loss(tiny, draw).backward()
    noisy = tiny.scheduler.add_noise(drawing().detach(), draw.noise, draw.timestep)
    with torch.no_grad():
        output = tiny.unet(noisy, torch.full((2,), draw.timestep), tiny.encode_prompt(["a toy", "a cat"]))
    expected = 2 * (1 - tiny.scheduler.alpha_bar(draw.timestep)) * (output - draw.noise)
    torch.testing.assert_close(drawing.latents.grad, expected)
    assert all(parameter.grad is None for parameter in tiny.unet.parameters())


def test_the_loop_moves_the_drawing_and_leaves_the_model(tiny):
    before = {key: value.clone() for key, value in tiny.unet.state_dict().items()}
    drawing = Drawing(torch.zeros(1, 4, 8, 8))
    tiny.unet.gradient_checkpointing(True)
    steps = list(score_distillation(tiny, drawing, "a toy", steps=3, generator=seeded(9)))
    assert len(steps) == 3 and drawing.latents.abs().max() > 0.05
    assert all(torch.equal(value, before[key]) for key, value in tiny.unet.state_dict().items())
    assert tiny.unet.mid_block.checkpointing


@pytest.mark.parametrize(
    "options, message",
    [
        ({"timesteps": (0.9, 0.1)}, "expected shares of the schedule"),
        ({"source": (torch.zeros(1, 4, 9, 9), "a cat")}, "expected the drawing's"),
        ({"source": (torch.zeros(1, 4, 8, 8), "a cat"), "jacobian": True}, "not both"),
        ({"prompts": ["a toy", "a cat"]}, "give one for each"),
    ],
)
def test_what_does_not_fit_is_refused(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        drawing = Drawing(torch.zeros(1, 4, 8, 8))
        score_distillation(tiny, drawing, **{"prompts": "a toy", "generator": seeded(0)} | options)
