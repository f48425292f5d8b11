"""Several prompts in one picture."""

import pytest
import torch

import minti
from minti.diffusion.composition import ComposedPrediction, Pull
from minti.diffusion.guidance import GuidedPrediction
from minti.diffusion.samplers import SAMPLERS
from minti.diffusion.scheduler import NoiseScheduler

PROMPTS = ["a red cat", "the dog"]


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("prompts", "shared_noise"), [(PROMPTS, False), (PROMPTS, True), (PROMPTS[:1] * 2, True)])
def test_one_prompt_alone_is_plain_guidance_bit_for_bit(tiny, prompts, shared_noise):
    """Also in the first step, where pictures that begin alike share the unconditional prediction, and in no other."""
    noise = torch.randn(2, 4, 8, 8, generator=seeded())
    noise = noise[:1].expand(2, -1, -1, -1) if shared_noise else noise
    with torch.no_grad():
        context, negative = tiny.encode_prompt(prompts), tiny.encode_prompt(["", ""])
        ends, counts = [], []
        for kind in (GuidedPrediction, ComposedPrediction):
            guided = kind(tiny.unet, context, negative, 7.5)

            def predict(latents, t, guided=guided):
                return tiny.scheduler.clean_and_noise(guided(latents, t), latents, t)

            *_, last = SAMPLERS["ddim"](predict, noise, tiny.scheduler, tiny.scheduler.timesteps(5))
            ends.append(last.latents)
            counts.append(guided.evaluations)
    assert ends[0].std() > 0.1
    assert torch.equal(*ends)
    assert counts == [20 - shared_noise] * 2


def test_a_prompt_twice_with_half_weights_is_the_prompt_once(tiny):
    options = {"num_inference_steps": 5, "sampler": "ddim", "output": "latents"}
    once = minti.sample(tiny, PROMPTS, "a toy", guidance_scale=7.0, generator=seeded(), **options)
    for prompt in PROMPTS:
        also = [(prompt, 3.5)]
        twice = minti.sample(tiny, [prompt] * 2, "a toy", guidance_scale=3.5, generator=seeded(), also=also, **options)
        i = PROMPTS.index(prompt)
        assert (twice - once)[i].abs().max() <= 1e-5 * once.abs().max()
        assert (twice - once)[1 - i].abs().max() > 1e-2 * once.abs().max()


def gaussian(mean, variance):
    """(score, precision, precision * mean) of N(mean, variance), all per coordinate."""
    return lambda x: (mean - x) / variance, 1 / variance, mean / variance


def test_gaussians_give_the_exact_score_of_their_product():
    """p_0 prod (p_i / p_0)^w_i of Gaussians is the Gaussian whose precisions add up with these weights."""
    generator = seeded(3)
    scheduler, t, shape = NoiseScheduler(), 400, (2, 4, 3, 3)
    sigma = (1 - scheduler.alphas_cumprod[t].double()) ** 0.5
    parts = [
        gaussian(torch.randn(shape, generator=generator).double(), torch.full(shape, variance).double())
        for variance in (4.0, 0.7, 0.3, 2.0)
    ]
    weights = [1.5, 1.0, -0.4]
    x = torch.randn(shape, generator=generator).double()

    def network(latents, timesteps, context):
        """The noise predictions of the Gaussians whose numbers are the context, 0, 0, 1, 1, ..."""
        assert (timesteps == t).all()
        assert context[:, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        means = torch.cat([moments / precisions for _, precisions, moments in parts])  # a pair for each part
        variances = torch.cat([1 / precisions for _, precisions, _ in parts])
        return sigma * (latents - means) / variances

    def context(k):
        return torch.full((2, 1, 1), float(k))

    prediction = ComposedPrediction(
        network, context(1), context(0), weights[0], also=[Pull(context(2), weights[1]), Pull(context(3), weights[2])]
    )
    precision, moment = parts[0][1].clone(), parts[0][2].clone()
    for weight, (_, part_precision, part_moment) in zip(weights, parts[1:]):
        precision += weight * (part_precision - parts[0][1])
        moment += weight * (part_moment - parts[0][2])
    assert (precision > 0).all()
    expected = moment - precision * x
    score = -prediction(x, t) / sigma
    assert prediction.evaluations == 8
    torch.testing.assert_close(score, expected, rtol=1e-12, atol=1e-12)


def test_a_mask_says_where_a_prompt_pulls(tiny):
    """In one step from the same latents: outside its mask a prompt does nothing, inside it all that it does alone."""
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    options = {"num_inference_steps": 1, "sampler": "ddim", "output": "latents", "guidance_scale": 3.0}

    def draw(also):
        return minti.sample(tiny, PROMPTS, generator=seeded(), also=also, **options)

    neither, masked, everywhere = draw([]), draw([("a toy", 4.0, mask)]), draw([("a toy", 4.0)])
    assert (masked - neither)[..., 4:].abs().max() <= 1e-5 * neither.abs().max()
    assert (masked - everywhere)[..., :4].abs().max() <= 1e-5 * neither.abs().max()
    assert (masked - neither)[..., :4].abs().mean() > 1e-3
    removed = draw([("a toy", -4.0)])
    torch.testing.assert_close(removed - neither, neither - everywhere, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"also": [("a toy", 1.0, torch.ones(1, 1, 3, 3))]}, "mask have shape"),
        ({"also": [("a toy", 1.0)], "refresh_every": 2}, "leave out refresh_every"),
        ({"also": [("a toy", 1.0)], "guidance_interval": (0, 10)}, "guidance_interval"),
        (
            {"also": [("a toy", 1.0)], "share_unconditional": True, "latents": torch.zeros(1, 4, 8, 8)},
            "share_unconditional",
        ),
    ],
)
def test_what_does_not_go_together_is_said(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        minti.sample(tiny, PROMPTS, num_inference_steps=1, **options)
