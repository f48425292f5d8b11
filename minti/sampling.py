"""Prompts to images: noise, classifier-free guidance, a sampler, the VAE's decoder (lecture notes `002`, 7.4).

A sampler (`minti.denoising`) asks `predict(latents, t)` for the UNet's raw output at every timestep. Four arguments of
`sample` take other techniques: `cfg` builds `predict` from the network, `guidance` changes it, `begin` says where the
run starts, `keep` edits the latents after every step.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from minti.denoising import Keep, Predict, Run, Sampler, SampleStep, make_sampler
from minti.images import to_pil
from minti.model import StableDiffusion
from minti.utils import Generators, check, randn

Prompts = str | Sequence[str] | Tensor  # words, or contexts (b, m, d) as `StableDiffusion.encode_prompt` gives them
Scale = float | Callable[[int], float]  # a number, or a function of the timestep (arXiv 2404.13040)
Network = Callable[[Tensor, Tensor, Tensor], Tensor]  # (b, c, h, w), timesteps (b,), context (b, m, d) -> (b, c, h, w)
OUTPUTS = ("pil", "latents", "pixels", "steps")


def scale_at(scale: Scale, t: float, name: str = "guidance_scale") -> float:
    """A guidance scale at timestep t. Raises ValueError: it is no number, or every image would overflow."""
    scale = scale(t) if callable(scale) else scale
    if not -1e6 <= scale <= 1e6:
        raise ValueError(f"{name} = {scale!r}; expected a number, usually 1 to 15")
    return scale


def conditional(network: Network, context: Tensor) -> Predict:
    """The network's own answer to a context, (b, m, d)."""
    return lambda latents, t: network(latents, torch.full((len(latents),), t, device=latents.device), context)


def classifier_free_guidance(network: Network, context: Tensor, negative: Tensor, scale: Scale) -> Predict:
    """Classifier-free guidance (arXiv 2207.12598): uncond + s (cond - uncond). 2 B T network evaluations for B images
    in T steps, B T where s = 1. The paper, `002`, 15, and slides `001` write w = s - 1; `002`, 7.4, and `003`, 6, s.

    `negative`: (b, m, d), the encoded negative prompts; with an empty prompt, `uncond` is the unconditional prediction.
    """
    if scale == 1:
        return conditional(network, context)
    scale_at(scale, 0)
    both = conditional(network, torch.cat([negative, context]))

    def predict(latents: Tensor, t: float) -> Tensor:
        uncond, cond = both(torch.cat([latents, latents]), t).chunk(2)  # one batch, as in diffusers
        return uncond + scale_at(scale, t) * (cond - uncond)

    return predict


def sample(
    model: StableDiffusion,
    prompts: Prompts,
    negative_prompt: Prompts = "",
    num_inference_steps: int = 50,
    guidance_scale: Scale | None = None,
    sampler: str | Sampler = "ddpm",
    generator: Generators = None,
    latents: Tensor | None = None,
    height: int | None = None,
    width: int | None = None,
    *,
    output: str = "pil",
    cfg: Callable[[Network, Tensor, Tensor, Scale], Predict] = classifier_free_guidance,
    guidance: Callable[[Predict], Predict] = lambda predict: predict,
    begin: Callable[[Run], Run] = lambda run: run,
    keep: Keep = lambda latents, level: latents,
    on_step: Callable[[SampleStep], None] = lambda step: None,
    gradient: bool = False,
) -> list[Image.Image] | Tensor | Iterator[SampleStep]:
    """Text to image: generates one image for each prompt.

    prompts: words, or contexts (b, m, d). negative_prompt: what guidance leads away from, one for all or for each.
    guidance_scale: 1 switches guidance off; None takes the model's own; or a function of the timestep.
    sampler: a name of `SAMPLERS`, or a `Sampler` with options, such as `DDIM(eta=1)`.
    generator: one draws for the whole batch, as in diffusers; of a list, each for one image.
    latents: (b or 1, c, h, w), standard normal noise to begin with; drawn when absent.
    height, width: in pixels; the size of the image that the run begins with, or the model's own, when absent.
    output: "pil"; "latents", (b, c, h, w), scaled; "pixels", (b, 3, H, W) in about [-1, 1]; "steps", an iterator of
        every `SampleStep`, without the decoder.
    cfg: how the predictions with and without prompt combine. guidance: predict -> predict, what else changes them.
    begin: Run -> Run, where the run begins. keep: (latents, level) -> latents, applied after every step.
    on_step: called with every `SampleStep`. gradient: lets a gradient flow through the run."""
    check("runs.messages:check_choice", "output", output, OUTPUTS)
    network, scale = Counter(model.unet), model.defaults.guidance_scale if guidance_scale is None else guidance_scale
    with torch.set_grad_enabled(gradient and torch.is_grad_enabled()):
        context = encoded(model, prompts)  # b m d, (b, 77, 768) in SD v1.4
        plain = scale == 1 and cfg is classifier_free_guidance  # uncond + 1 (cond - uncond) = cond
        negative = context if plain else encoded(model, negative_prompt, context, "negative prompts")
        predict, walk = guidance(cfg(network, context, negative, scale)), make_sampler(sampler)
        check("samplers.few_step:check_guidance", walk, scale)
        shape = model.latents_shape(len(context), height, width)
        if height is None and width is None and hasattr(begin, "init_latents"):  # of an image of any size
            shape = (len(context), *begin.init_latents.shape[1:])
        noise = randn(shape, generator, model.device, model.dtype) if latents is None else latents
        noise = expand(noise, shape, "latents").to(model.device, model.dtype)
        run = begin(Run(noise, model.scheduler, walk.stops(model.scheduler, num_inference_steps), generator))
        steps = walk(predict, replace(run, keep=lambda x, level: keep(run.keep(x, level), level)))
        counted = watched if gradient else torch.no_grad()(watched)  # inside a step, not in the caller's loop
        steps = counted(steps, network, model, f"guidance_scale {scale}, {model.dtype}")
        if output == "steps":
            return steps
        for step in steps:
            on_step(step)
        pixels = None if output == "latents" else model.decode(step.latents)
    return step.latents if output == "latents" else pixels if output == "pixels" else to_pil(pixels.detach())


def sample_steps(model: StableDiffusion, prompts: Prompts, *args: Any, **options: Any) -> Iterator[SampleStep]:
    """Yields every denoising step; never decodes. The arguments are those of `sample`, without `output`."""
    return sample(model, prompts, *args, output="steps", **options)


class Counter:
    """A network that counts the images that have gone through it."""

    def __init__(self, network: Network):
        self.network, self.evaluations = network, 0

    def __call__(self, latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        self.evaluations += len(latents)
        return self.network(latents, timesteps, context)


def watched(
    steps: Iterator[SampleStep], network: Counter, model: StableDiffusion, settings: str
) -> Iterator[SampleStep]:
    """The steps with their number of evaluations. Raises ValueError: latents are not finite."""
    for step in steps:
        overflow = f"they have overflowed ({settings}); try a lower guidance scale, or bfloat16"
        check("runs.checks:finite", model, "the latents", step.latents, overflow)
        yield step._replace(evaluations=network.evaluations)


def encoded(model: StableDiffusion, prompts: Prompts, like: Tensor | None = None, name: str = "prompts") -> Tensor:
    """Prompts as contexts, (b, m, d); with `like` in its shape, one prompt for all repeated."""
    if isinstance(prompts, str):  # one per image, as in diffusers: products of fewer rows may round otherwise
        prompts = [prompts] * (1 if like is None else len(like))
    context = prompts if isinstance(prompts, Tensor) else model.encode_prompt(list(prompts))
    check("runs.checks:contexts", context, model.unet.config.cross_attention_dim, like, name)
    context = context.to(model.device, model.dtype)
    return context if like is None else expand(context, like.shape, "contexts")


def expand(tensor: Tensor, shape: Sequence[int], name: str) -> Tensor:
    """The tensor in that shape; one for all images is repeated. Raises ValueError: it has another shape."""
    if tensor.ndim != len(shape) or tuple(tensor.shape[1:]) != tuple(shape[1:]) or len(tensor) not in (1, shape[0]):
        raise ValueError(f"{name} have shape {tuple(tensor.shape)}; expected {tuple(shape)} or {(1, *shape[1:])}")
    return tensor.expand(shape)
