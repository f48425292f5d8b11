"""Two values of `cfg` for `minti.sample`: what images that start from the same noise can share of the unconditional
prediction (exercise E4, question 2).

It depends on latents, timestep and negative prompt only. In the first step these agree, and one evaluation serves all,
exactly (`first_step_shared`). From then on every prompt leads its image elsewhere; the scores along one unconditional
trajectory, shared all the same (`unconditional_shared`), belong to another image.
"""

import torch
from torch import Tensor

from minti.denoising import Predict
from minti.sampling import Network, Scale, classifier_free_guidance, conditional, scale_at


def first_step_shared(network: Network, context: Tensor, negative: Tensor, scale: Scale) -> Predict:
    """Classifier-free guidance whose first call evaluates only once what latents and negative prompts have in common.

    2 B T - (B - 1) evaluations where all B images start from the same noise. Only rounding differs from plain guidance.
    """
    started = False

    def once(latents: Tensor, timesteps: Tensor, contexts: Tensor) -> Tensor:
        nonlocal started
        if started:
            return network(latents, timesteps, contexts)
        started, b = True, len(latents) - len(context)  # the unconditional half comes first
        same = lambda i, j: torch.equal(latents[i], latents[j]) and torch.equal(contexts[i], contexts[j])  # noqa: E731
        first = [next(j for j in range(i + 1) if same(i, j)) for i in range(b)]  # for each, the first one like it
        rows = [*sorted(set(first)), *range(b, len(latents))]
        outputs = network(latents[rows], timesteps[rows], contexts[rows])
        return outputs[[rows.index(i) for i in [*first, *range(b, len(latents))]]]

    return classifier_free_guidance(once, context, negative, scale)


def unconditional_shared(
    network: Network,
    context: Tensor,
    negative: Tensor,
    scale: Scale,
    interval: tuple[float, float] = (float("-inf"), float("inf")),
) -> Predict:
    """Guidance of B images by one more, the last of the batch, whose prompt is the negative one: T (B + 1) evaluations.

        minti.sample(model, [*prompts, ""], latents=noise, cfg=unconditional_shared)[:-1]

    `interval`: between which timesteps to guide, both included.
    Raises ValueError: the last prompt is not the negative prompt of all; the images start from different noises.
    """
    if not (negative == context[-1:]).all():
        raise ValueError("one unconditional trajectory needs one negative prompt for all images, as the last prompt")
    evaluate, started = conditional(network, context), False

    def predict(latents: Tensor, t: float) -> Tensor:
        nonlocal started
        if not started and not (latents == latents[:1]).all():
            raise ValueError("one unconditional trajectory needs the same initial noise for all images")
        started, output = True, evaluate(latents, t)  # b + 1
        uncond = output[-1:]
        return uncond + scale_at(scale, t) * (output - uncond) if interval[0] <= t <= interval[1] else output

    return predict
