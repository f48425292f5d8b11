"""Composed guidance: several prompts in one image."""

import pytest
import torch
from helpers import seeded

import minti
from minti.guidance.conditions import Condition, Conditions, cached_unconditional, composed_guidance, in_interval
from minti.sampling import Counter, conditional
from minti.scheduler import NoiseScheduler

PROMPTS = ["a red cat", "the dog"]


def test_a_prompt_twice_with_half_weights_is_the_prompt_once(tiny):
    options = {"num_inference_steps": 5, "sampler": "ddim", "output": "latents"}
    once = minti.sample(tiny, PROMPTS, "a toy", guidance_scale=7.0, generator=seeded(), **options)
    for prompt in PROMPTS:
        cfg = Conditions(tiny, extra_prompts=[(prompt, 3.5)])
        twice = minti.sample(tiny, [prompt] * 2, "a toy", guidance_scale=3.5, generator=seeded(), cfg=cfg, **options)
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

    counted = Counter(network)
    prediction = composed_guidance(counted, [Condition(context(i), weights[i - 1]) for i in (1, 2, 3)], context(0))
    precision, moment = parts[0][1].clone(), parts[0][2].clone()
    for weight, (_, part_precision, part_moment) in zip(weights, parts[1:]):
        precision += weight * (part_precision - parts[0][1])
        moment += weight * (part_moment - parts[0][2])
    assert (precision > 0).all()
    expected = moment - precision * x
    score = -prediction(x, t) / sigma
    assert counted.evaluations == 8
    torch.testing.assert_close(score, expected, rtol=1e-12, atol=1e-12)


def test_a_mask_says_where_a_prompt_acts(tiny):
    """In one step from the same latents: outside its mask a prompt does nothing, inside it all that it does alone."""
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    options = {"num_inference_steps": 1, "sampler": "ddim", "output": "latents", "guidance_scale": 3.0}

    def draw(extra):
        return minti.sample(tiny, PROMPTS, generator=seeded(), cfg=Conditions(tiny, extra_prompts=extra), **options)

    neither, masked, everywhere = draw([]), draw([("a toy", 4.0, mask)]), draw([("a toy", 4.0)])
    assert (masked - neither)[..., 4:].abs().max() <= 1e-5 * neither.abs().max()
    assert (masked - everywhere)[..., :4].abs().max() <= 1e-5 * neither.abs().max()
    assert (masked - neither)[..., :4].abs().mean() > 1e-3
    removed = draw([("a toy", -4.0)])
    torch.testing.assert_close(removed - neither, neither - everywhere, rtol=1e-3, atol=1e-4)


def test_several_prompts_can_save_what_one_can():
    """The unconditional prediction kept for a step; outside an interval the first prompt's own answer."""
    network = lambda x, t, context: t[:, None, None, None] + context[..., None] * x  # noqa: E731
    contexts = [torch.full((2, 1, 1), number) for number in (2.0, 3.0, 5.0)]
    counted = Counter(network)
    conditions = [Condition(contexts[1], 2.0), Condition(contexts[2], -0.5)]
    predict = in_interval(
        (200, 800),
        composed_guidance(cached_unconditional(counted, 2, 2), conditions, contexts[0]),
        conditional(counted, contexts[1]),
    )
    x = torch.tensor([1.0, 10.0]).view(2, 1, 1, 1)
    for t, kept in ((900, None), (800, 800), (500, 800), (200, 200), (100, None)):
        uncond, first, second = (None if kept is None else kept + 2 * x), t + 3 * x, t + 5 * x
        expected = first if kept is None else uncond + 2 * (first - uncond) - 0.5 * (second - uncond)
        assert torch.equal(predict(x, t), expected)
    assert counted.evaluations == 2 * (1 + 3 + 2 + 3 + 1)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([("a toy", 1.0, torch.ones(1, 1, 3, 3))], "mask have shape"),
        ([("a toy", float("nan"))], "weight = nan; expected a number"),
        ([(["a", "b", "c"], 1.0)], "3 further prompts for 2 prompts"),
    ],
)
def test_a_condition_that_cannot_be_is_refused(tiny, extra, message):
    with pytest.raises(ValueError, match=message):
        minti.sample(tiny, PROMPTS, num_inference_steps=1, cfg=Conditions(tiny, extra_prompts=extra))
