"""Prompts to pictures: noise, guided denoising, decode (lecture notes `002`, 7.4)."""

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from minti.diffusion.guidance import Counted, Pull, Strength, guided, refreshed, unconditional_counts, unguided, within
from minti.diffusion.samplers import named
from minti.diffusion.steps import Predict, Run, Sampler, SampleStep
from minti.editing import fitted, from_picture
from minti.images import to_pil
from minti.machine.noise import Generators, randn
from minti.model import StableDiffusion

OUTPUTS = ("pil", "latents", "pixels")
Prompts = str | Sequence[str] | Tensor  # words, or contexts (b, n, d) as `StableDiffusion.encode_prompt` gives them
Function = TypeVar("Function", bound=Callable[..., Any])


def no_grad_unless_asked(function: Function) -> Function:
    """`torch.no_grad` for a function or a generator (whose caller it leaves alone), unless called with `gradient`."""
    without = torch.no_grad()(function)
    return wraps(function)(lambda *args, **named: (function if named.get("gradient") else without)(*args, **named))


@no_grad_unless_asked
def sample_steps(
    model: StableDiffusion,
    prompts: Prompts,
    negative_prompt: Prompts = "",
    num_inference_steps: int = 50,
    guidance_scale: Strength | None = None,
    sampler: str | Sampler = "ddpm",
    generator: Generators = None,
    latents: Tensor | None = None,
    height: int | None = None,
    width: int | None = None,
    *,
    also: Sequence[tuple[Any, ...]] = (),
    guidance_interval: tuple[int, int] | None = None,
    refresh_every: int = 1,
    guidance: Callable[[Predict], Predict] = lambda predict: predict,
    gradient: bool = False,
    **picture: Any,
) -> Iterator[SampleStep]:
    """Yields every denoising step for a batch of prompts; never decodes.

    Args:
        prompts: one picture for each; words, or contexts (b, n, d).
        negative_prompt: one for all, or one for each prompt; what guidance pushes away from.
        guidance_scale: 1 switches guidance off; None takes the model's own. Or a function of the timestep.
        sampler: "ddpm", "ddim", "pndm", "dpm-solver++", "euler", "heun"; or a `Sampler`, made with options.
        generator: one draws as diffusers draws for the batch; of a list each draws a picture of its own.
        latents: (b or 1, c, h, w) initial standard normal noise; drawn when absent.
        height, width: in pixels; the size of `init_latents`, or the model's own, when absent.
        also: further prompts that shape every picture, as (prompt, weight) or (prompt, weight, mask); see `Pull`.
        guidance_interval, refresh_every: what guidance may save; see `guidance.within` and `guidance.refreshed`.
        guidance: what else bends the prediction; applied last.
        gradient: lets a gradient flow through the run.
        picture: `init_latents`, `strength` and `mask` of `editing.from_picture`.

    Raises ValueError: what cannot be drawn, in one line; or latents that are not finite.
    """
    context = encoded(model, prompts)  # b n d, (b, 77, 768) in SD v1.4
    shape = latents_shape(model, len(context), height, width, picture.get("init_latents"))
    noise = randn(shape, generator, model.device, model.dtype) if latents is None else fitted(latents, shape, "latents")
    scale = model.defaults.guidance_scale if guidance_scale is None else guidance_scale
    pulls = [Pull(context, scale), *(further_pull(model, context, shape, *other) for other in also)]
    negative = encoded(model, negative_prompt, context, "negative prompts") if unconditional_counts(pulls) else context

    network, sampler = Counted(model.unet), named(sampler)
    predict = guided(refreshed(network, refresh_every, len(context)), pulls, negative)
    predict = guidance(within(guidance_interval, predict, unguided(network, context)))
    stops = sampler.stops(model.scheduler, num_inference_steps)
    run = Run(noise.to(model.device, model.dtype), model.scheduler, stops, generator)
    for step in sampler(predict, from_picture(run, **picture)):
        if not step.latents.isfinite().all():
            overflow = f"they have overflowed (guidance_scale {scale}, {model.dtype})"
            model.check_finite("the pictures", step.latents, f"{overflow}; try a lower guidance scale, or bfloat16")
        yield step._replace(evaluations=network.evaluations)


def encoded(model: StableDiffusion, prompts: Prompts, like: Tensor | None = None, name: str = "prompts") -> Tensor:
    """Words or contexts as contexts, (b, n, d); with `like` in its shape, one for all repeated.
    Raises ValueError: no prompt, or contexts of another shape."""
    if isinstance(prompts, str):  # for each, as in diffusers: of fewer rows a product may round otherwise
        prompts = [prompts] * (1 if like is None else len(like))
    if not len(prompts):
        raise ValueError("no prompt given")
    d = model.unet.config.cross_attention_dim
    context = prompts if isinstance(prompts, Tensor) else model.encode_prompt(list(prompts))
    if context.ndim != 3 or context.shape[-1] != d:
        raise ValueError(f"contexts of shape {tuple(context.shape)}; expected (b, n, {d}), as encode_prompt gives them")
    if like is not None and len(context) not in (1, len(like)):
        raise ValueError(f"{len(context)} {name} for {len(like)} prompts; give one, or one for each")
    context = context.to(model.device, model.dtype)
    return context if like is None else fitted(context, like.shape, "contexts")


def further_pull(
    model: StableDiffusion, like: Tensor, shape: tuple[int, ...], prompt: Prompts, weight: float, mask: Any = None
) -> Pull:
    """A prompt beside the first one, whose context is `like`, for latents of that shape."""
    if mask is not None:
        mask = fitted(mask, (shape[0], 1, *shape[2:]), "mask").to(like)
    return Pull(encoded(model, prompt, like, "further prompts"), weight, mask)


def latents_shape(
    model: StableDiffusion, count: int, height: int | None, width: int | None, picture: Tensor | None
) -> tuple[int, ...]:
    """(b, c, h, w) for a size in pixels; when absent that of a picture's latents, or the model's own."""
    if picture is not None and height is None and width is None:
        height, width = (side * model.vae.config.factor for side in picture.shape[-2:])
    return model.latents_shape(count, height, width)


@no_grad_unless_asked
def sample(
    model: StableDiffusion,
    prompts: Prompts,
    negative_prompt: Prompts = "",
    output: str = "pil",
    on_step: Callable[[SampleStep], None] = lambda step: None,
    **options: Any,
) -> list[Image.Image] | Tensor:
    """Draws one picture for each prompt; the other arguments and what is refused are those of `sample_steps`.

    Args:
        output: "pil" for a list of pictures; "latents" for (b, c, h, w), scaled, as the sampler left them; "pixels" for
            (b, 3, H, W), about [-1, 1]. Raises ValueError: another.
        on_step: called after every step, for a progress bar or a preview.
    """
    if output not in OUTPUTS:
        raise ValueError(f"unknown output {output!r}; expected one of {', '.join(OUTPUTS)}")
    for step in sample_steps(model, prompts, negative_prompt, **options):
        on_step(step)
    if output == "latents":
        model.check_finite("the latents", step.latents)
        return step.latents
    pixels = model.decode(step.latents)
    return pixels if output == "pixels" else to_pil(pixels.detach())
