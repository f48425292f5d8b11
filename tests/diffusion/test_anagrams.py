"""Visual anagrams and hybrid images, two prompts in one image: by closed forms, and against the plain run."""

import numpy as np
import pytest
import torch
from helpers import PROMPTS, seeded
from PIL import Image, ImageOps

import minti
from minti.guidance.conditions import Condition, Conditions, composed_guidance
from minti.guidance.illusions import VIEWS, View, anagram, blurred, hybrid
from minti.scheduler import NoiseScheduler, SchedulerConfig

SAME = View(lambda x: x, lambda x: x)
PIL = {
    "half": lambda image: image.rotate(180),
    "quarter": lambda image: image.transpose(Image.Transpose.ROTATE_270),  # PIL turns the other way round
    "mirror": ImageOps.mirror,
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_turns_as_pil_does_and_comes_back(name):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    x, view = torch.from_numpy(pixels).permute(2, 0, 1), VIEWS[name]
    expected = np.array(PIL[name](Image.fromarray(pixels)))
    assert np.array_equal(view.turn(x).permute(1, 2, 0).numpy(), expected)
    assert torch.equal(view.back(view.turn(x)), x)


@pytest.mark.parametrize("name", VIEWS)
def test_white_noise_stays_white(name):
    """v(z) has the covariance A Aᵀ, the identity, where A is the view's matrix."""
    matrix = VIEWS[name].turn(torch.eye(9).view(9, 3, 3)).reshape(9, 9).T
    assert not torch.equal(matrix, torch.eye(9))
    assert torch.equal(matrix @ matrix.T, torch.eye(9))


def gaussian_noise(scheduler, t, mean, variance):
    """The perfect network's answer where clean images are N(mean, variance), coordinate by coordinate."""
    a = scheduler.alphas_cumprod[t].double()
    total = a * variance + (1 - a)
    return lambda latents, _: (1 - a).sqrt() * (latents - a.sqrt() * mean) / total


@pytest.mark.parametrize("name", VIEWS)
def test_on_gaussians_it_is_the_score_of_the_product_s_root(name):
    """sqrt(p(x) q(v(x))): precisions and moments are means, of p's and of q's turned back."""
    scheduler, t, view, shape = NoiseScheduler(), 300, VIEWS[name], (2, 1, 3, 3)
    one, other, x = torch.randn(3, *shape, generator=seeded()).double()
    spread, wide = torch.rand(2, *shape, generator=seeded(2)).double() + 0.2
    parts = gaussian_noise(scheduler, t, one, spread), gaussian_noise(scheduler, t, other, wide)
    epsilon = anagram(parts[1], view)(parts[0])(x, t)
    a = scheduler.alphas_cumprod[t].double()
    precisions = 1 / (a * spread + 1 - a), view.back(1 / (a * wide + 1 - a))
    moments = precisions[0] * a.sqrt() * one, precisions[1] * a.sqrt() * view.back(other)
    expected = sum(moments) / 2 - sum(precisions) / 2 * x
    torch.testing.assert_close(-epsilon / (1 - a).sqrt(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [lambda other: anagram(other, VIEWS["half"]), lambda other: hybrid(other, 1.3)])
def test_averaging_v_is_averaging_the_noise(make):
    """The same clean images, whatever the network was trained to say."""
    clean, x = torch.randn(2, 2, 3, 6, 6, generator=seeded()).double()
    t, answers = 600, {}
    predicts = [lambda latents, t: 0.4 * latents.tanh() + clean, lambda latents, t: latents.cos() - clean]  # of noise
    for kind in ("epsilon", "v_prediction"):
        scheduler = NoiseScheduler(SchedulerConfig(prediction_type=kind))

        def raw(predict, scheduler=scheduler):
            def network(latents, t):
                noise = predict(latents, t)
                return scheduler.target(scheduler.clean_from_noise(latents, noise, t), noise, t)

            return network

        one, other = map(raw, predicts)
        answers[kind] = scheduler.clean_and_noise(make(other)(one)(x, t), x, t)
    for a, b in zip(answers["epsilon"], answers["v_prediction"]):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def drawn(model, guidance):
    options = {"num_inference_steps": 4, "sampler": "ddim", "output": "latents", "guidance_scale": 4.0}
    return minti.sample(model, PROMPTS, generator=seeded(), guidance=guidance, **options)


@pytest.mark.parametrize("make", [lambda other: anagram(other, SAME), lambda other: hybrid(other, 1.5)])
def test_the_same_prompt_twice_is_the_plain_image_bit_for_bit(tiny, make):
    other = composed_guidance(tiny.unet, [Condition(tiny.encode_prompt(PROMPTS), 4.0)], tiny.encode_prompt(["", ""]))
    plain = drawn(tiny, lambda predict: predict)
    assert torch.equal(drawn(tiny, make(other)), plain)
    assert not torch.equal(drawn(tiny, anagram(other, VIEWS["half"])), plain)


def test_without_a_turn_it_is_two_prompts_at_half_their_weights(tiny):
    other = composed_guidance(
        tiny.unet, [Condition(tiny.encode_prompt(["a toy", "a cat"]), 4.0)], tiny.encode_prompt(["", ""])
    )
    halves = {"guidance_scale": 2.0, "cfg": Conditions(tiny, extra_prompts=[(["a toy", "a cat"], 2.0)])}
    options = {"num_inference_steps": 4, "sampler": "ddim", "output": "latents"}
    expected = minti.sample(tiny, PROMPTS, generator=seeded(), **options, **halves)
    torch.testing.assert_close(drawn(tiny, anagram(other, SAME)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", VIEWS)
def test_of_a_network_that_turns_along_it_is_the_network(name):
    """v(f(x)) = f(v(x)) for what treats every pixel alike; images need not be square."""
    network = lambda latents, t: latents.tanh() + t  # noqa: E731
    x = torch.randn(2, 3, 4, 6, generator=seeded())
    assert torch.equal(anagram(network, VIEWS[name])(network)(x, 5), network(x, 5))


def test_coarse_and_fine_make_the_whole():
    """Of noise by one prompt and nothing by the other: what is blurred away of the one is what the other lacks."""
    x = torch.randn(2, 3, 8, 12, generator=seeded()).double()
    some, none = (lambda latents, t: latents), (lambda latents, t: 0 * latents)
    coarse, fine = hybrid(none, 1.2)(some)(x, 0), hybrid(some, 1.2)(none)(x, 0)
    torch.testing.assert_close(coarse, blurred(x, 1.2))
    torch.testing.assert_close(coarse + fine, x, rtol=1e-12, atol=1e-12)


def test_a_blur_is_a_gaussian_and_keeps_what_is_even():
    dot = torch.zeros(1, 1, 41, 41).double()
    dot[..., 20, 20] = 1
    apart = torch.arange(41) - 20
    squares = (apart[:, None] ** 2 + apart**2).double()
    expected = torch.exp(-squares / (2 * 2.5**2)) / (2 * torch.pi * 2.5**2)
    torch.testing.assert_close(blurred(dot, 2.5)[0, 0], expected, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(blurred(torch.full((1, 2, 5, 7), 3.0), 2.5), torch.full((1, 2, 5, 7), 3.0))
    assert torch.equal(blurred(dot, 1e-9), dot)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_a_blur_without_a_width_is_refused(sigma):
    with pytest.raises(ValueError, match=r"sigma = .*; expected more than 0, in latents"):
        hybrid(lambda latents, t: latents, sigma)
