"""Guidance: what it costs, and what can be computed once."""

import math

import pytest
import torch
from helpers import PROMPTS, seeded

import minti
from minti.denoising import DDIM, Run
from minti.guidance.conditions import Condition, Conditions, cached_unconditional, composed_guidance
from minti.sampling import Counter
from minti.scheduler import NoiseScheduler, SchedulerConfig


def test_evaluations_are_counted(tiny):
    """E4, question 2: 2 B T evaluations, B T where the guidance scale is 1."""
    for scale, factor in ((7.5, 2), (1.0, 1), (0.0, 2)):
        steps = list(minti.sample_steps(tiny, PROMPTS, num_inference_steps=4, guidance_scale=scale))
        assert [step.evaluations for step in steps] == [factor * 2 * (i + 1) for i in range(4)]
        assert [step.timestep for step in steps] == tiny.scheduler.timesteps(4)


def test_the_empty_prompt_is_encoded_once_for_each_image_and_only_where_it_counts(tiny):
    encoded = []
    hook = tiny.text_encoder.register_forward_pre_hook(lambda _, args: encoded.append(len(args[0])))
    next(minti.sample_steps(tiny, [*PROMPTS, "a photo"], num_inference_steps=2))
    next(minti.sample_steps(tiny, PROMPTS, num_inference_steps=2, guidance_scale=1))
    hook.remove()
    assert encoded == [3, 3, 2]


def test_pndm_evaluates_once_more(tiny):
    *_, last = minti.sample_steps(tiny, PROMPTS, num_inference_steps=50, sampler="pndm")
    assert last.evaluations == 2 * len(PROMPTS) * 51


def test_weights_go_up_to_a_million():
    for weight in (1e6, -1e6):
        Condition(torch.zeros(1, 1, 1), weight)
        with pytest.raises(ValueError, match=r"weight = -?1000000\.0000000001; expected a number"):
            Condition(torch.zeros(1, 1, 1), math.nextafter(weight, 2 * weight))


def test_refreshing_every_k_steps(tiny):
    """B T (1 + 1 / k) evaluations; every step is the exact run."""
    run = lambda **options: list(  # noqa: E731
        minti.sample_steps(tiny, PROMPTS, num_inference_steps=6, sampler="ddim", generator=seeded(), **options)
    )
    exact, every, third = run(), run(cfg=Conditions(tiny, refresh_every=1)), run(cfg=Conditions(tiny, refresh_every=3))
    assert torch.equal(exact[-1].latents, every[-1].latents)
    assert third[-1].evaluations == 2 * 6 + 2 * 2
    assert torch.equal(third[0].latents, exact[0].latents)
    assert not torch.equal(third[1].latents, exact[1].latents)


def test_guidance_in_an_interval(tiny):
    timesteps = tiny.scheduler.timesteps(6)
    run = lambda **options: list(  # noqa: E731
        minti.sample_steps(tiny, PROMPTS, num_inference_steps=6, sampler="ddim", generator=seeded(), **options)
    )
    limited, off = run(cfg=Conditions(tiny, interval=(timesteps[3], timesteps[2]))), run(guidance_scale=1)
    assert [step.evaluations for step in limited] == [2, 4, 8, 12, 14, 16]
    torch.testing.assert_close(limited[1].latents, off[1].latents)
    assert not torch.allclose(limited[2].latents, off[2].latents)


def test_what_is_kept_is_the_unconditional_prediction():
    """uncond of the last refresh + s (cond - that), with a network whose answers can be told apart."""
    negative, prompt = torch.full((1, 1, 1), 3.0), torch.full((1, 1, 1), 5.0)
    counted = Counter(lambda x, t, context: t[:, None, None, None] + context[..., None] * x)
    predict = composed_guidance(cached_unconditional(counted, 3, images=1), [Condition(prompt, 2.0)], negative)
    x = torch.tensor([1.0, 10.0]).view(1, 1, 1, 2)
    for i, t in enumerate((900, 700, 500, 300, 100)):
        last = (900, 300)[i // 3]
        uncond, cond = last + 3 * x, t + 5 * x
        assert torch.equal(predict(x, t), uncond + 2 * (cond - uncond))
    assert counted.evaluations == 5 + 2


def test_a_classifier_s_gradient_is_guidance_too():
    """On a mixture of Gaussians, from predict to predict: at scale 1 the exact conditional score, and its flow.

    x_0 ~ sum_k w_k N(m_k, s_k^2)   =>   p_t(x, k) = w_k N(sqrt(a) m_k, a s_k^2 + 1 - a)
    grad log p_t(x | k) = grad log p_t(x) + grad log p_t(k | x)   (arXiv 2105.05233, Algorithm 2)
    """
    scheduler = NoiseScheduler(SchedulerConfig(set_alpha_to_one=True))
    w, m, s = (torch.tensor(v).double() for v in ([0.2, 0.5, 0.3], [-2.0, 0.5, 3.0], [0.3, 0.8, 0.4]))

    def log_parts(x, t):  # of p_t(x, k), (..., k)
        a = scheduler.alphas_cumprod[t].double()
        return w.log() + torch.distributions.Normal(a.sqrt() * m, (a * s**2 + 1 - a).sqrt()).log_prob(x[..., None])

    def gradient(function, x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(function(x).sum(), x)[0]

    def towards(k, scale):
        classifier = lambda x, t: gradient(lambda x: log_parts(x, t).log_softmax(-1)[..., k], x)  # noqa: E731
        return lambda predict: lambda x, t: predict(x, t) + scheduler.noise_from_score(scale * classifier(x, t), t)

    network = lambda x, t: scheduler.noise_from_score(gradient(lambda x: log_parts(x, t).logsumexp(-1), x), t)  # noqa: E731
    start, stops = torch.randn(1, 1, 50, 1, generator=seeded()).double(), DDIM().stops(scheduler, 250)
    for k in range(3):
        predict = towards(k, 1.0)(network)
        for t, (signal, noise) in stops[:-1:50]:
            score = (signal * m[k] - start) / (signal**2 * s[k] ** 2 + noise**2)
            torch.testing.assert_close(scheduler.score_from_noise(predict(start, t), t), score, rtol=1e-5, atol=1e-6)
        *_, last = DDIM()(predict, Run(start, scheduler, stops))
        a = scheduler.alphas_cumprod[stops[0].timestep].double()
        expected = m[k] + s[k] * (start - a.sqrt() * m[k]) / (a * s[k] ** 2 + 1 - a).sqrt()
        torch.testing.assert_close(last.latents, expected, rtol=0, atol=0.03)
