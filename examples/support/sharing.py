"""What pictures that begin at the same noise can share of the unconditional prediction (exercise E4, question 2).

It depends on latents, timestep and negative prompt only. In the first step these agree, and one evaluation serves all,
exactly (`first_step_shared`). From then on every prompt pulls its picture elsewhere; the scores along one unconditional
trajectory, shared all the same (`unconditional_shared`), belong to another picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from minti.diffusion.guidance import Counted
from torch import Tensor

import minti
from minti.denoising import Predict, Run, Sampler, SampleStep, make_sampler
from minti.editing.image_to_image import ImageToImage
from minti.guidance.conditions import Condition, composed_guidance
from minti.sampling import Network, conditional
from minti.utils import Generators

Way = Callable[[Network, Tensor, Tensor, float], Predict]  # network, context, negative context (b, n, d), scale


def first_step_shared(network: Network, context: Tensor, negative_context: Tensor, scale: float) -> Predict:
    """Guidance that in its first call evaluates pictures once that have latents and negative prompt in common.

    2 B T - (B - 1) evaluations where all B begin alike. Only rounding differs from plain guidance.
    """
    started = False

    def once(latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        nonlocal started
        if started:
            return network(latents, timesteps, context)
        started, b = True, len(latents) // 2  # the unconditional half comes first
        same = lambda i, j: torch.equal(latents[i], latents[j]) and torch.equal(context[i], context[j])  # noqa: E731
        first = [next(j for j in range(i + 1) if same(i, j)) for i in range(b)]  # for each, the first one like it
        rows = [*sorted(set(first)), *range(b, 2 * b)]
        outputs = network(latents[rows], timesteps[rows], context[rows])
        return outputs[[rows.index(i) for i in [*first, *range(b, 2 * b)]]]

    return composed_guidance(once, [Condition(context, scale)], negative_context)


def unconditional_shared(
    network: Network,
    context: Tensor,
    negative_context: Tensor,
    scale: float,
    interval: tuple[float, float] = (float("-inf"), float("inf")),
) -> Predict:
    """Guidance of B pictures by one more, the last of the latents, which follows the negative prompt alone: T (B + 1).

    Args:
        interval: between which timesteps to guide, both included.

    Raises:
        ValueError: the pictures have several negative prompts.
    """
    if not (negative_context == negative_context[:1]).all():
        raise ValueError("one unconditional trajectory needs one negative prompt for all pictures")
    evaluate = conditional(network, torch.cat([context, negative_context[:1]]))

    def predict(latents: Tensor, t: int) -> Tensor:
        output = evaluate(latents, t)  # b + 1
        uncond = output[-1:]
        return uncond + scale * (output - uncond) if interval[0] <= t <= interval[1] else output

    return predict


@torch.no_grad()
def shared_steps(
    model: minti.StableDiffusion,
    prompts: list[str],
    noise: Tensor,
    way: Way = first_step_shared,
    negative_prompts: list[str] | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    sampler: str | Sampler = "ddim",
    generator: Generators = None,
    **picture: Any,
) -> Iterator[SampleStep]:
    """As `minti.sample_steps`, one of the ways above.

    Args:
        noise: (b, c, h, w), the initial latents.
        picture: of `editing.from_picture`.

    Raises:
        ValueError: the pictures have different noise, of which one unconditional trajectory cannot be shared.
    """
    b, sampler, network = len(prompts), make_sampler(sampler), Counted(model.unet)
    negative_context = model.encode_prompt(negative_prompts or [""] * b)
    predict = way(network, model.encode_prompt(prompts), negative_context, guidance_scale)
    if way is not first_step_shared:
        if not (noise == noise[:1]).all():
            raise ValueError("one unconditional trajectory needs the same initial noise for all pictures")
        noise = torch.cat([noise, noise[:1]])
        generator = [*generator, generator[0].clone_state()] if isinstance(generator, list) else generator
    run = Run(noise, model.scheduler, sampler.stops(model.scheduler, num_inference_steps), generator)
    for step in sampler(predict, ImageToImage(run, **picture)):
        yield SampleStep(step.timestep, step.latents[:b], step.clean[:b], network.evaluations)
