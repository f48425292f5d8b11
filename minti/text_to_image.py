"""Prompts to pictures: noise, guided denoising, decode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from minti.guidance import GuidedPrediction
from minti.images import to_pil
from minti.model import StableDiffusion
from minti.noise import Generators, randn
from minti.samplers import SAMPLERS

OUTPUTS = ("pil", "latents", "pixels")


class SampleStep(NamedTuple):
    """The state of `sample_steps` after a step.

    Attributes:
        timestep: the timestep that was left.
        latents: (b, c, h, w), scaled.
        clean: (b, c, h, w), scaled: the clean latents predicted at `timestep`, good for a preview.
        evaluations: how many pictures have gone through the UNet so far.
    """

    timestep: int
    latents: Tensor
    clean: Tensor
    evaluations: int


@torch.no_grad()
def sample_steps(
    model: StableDiffusion,
    prompts: str | Sequence[str],
    negative_prompt: str | Sequence[str] = "",
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    sampler: str = "ddpm",
    generator: Generators = None,
    latents: Tensor | None = None,
    height: int | None = None,
    width: int | None = None,
    **sampler_options: float | str,
) -> Iterator[SampleStep]:
    """Yields every denoising step for a batch of prompts; never decodes.

    Args:
        prompts: one picture for each.
        negative_prompt: one for all, or one for each prompt; what guidance pushes away from.
        guidance_scale: 1 switches guidance off.
        sampler: "ddpm" or "ddim".
        generator: one draws as diffusers draws for the batch; a list holds one per picture, so that a picture does not
            depend on its neighbours.
        latents: (b, c, h, w) initial standard normal noise; drawn when absent.
        height, width: in pixels; the model's own size when absent.
        sampler_options: further arguments of the sampler, such as `eta` of DDIM.

    Raises:
        ValueError: unknown sampler, a size that is no multiple of the VAE's factor, or counts that do not match.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    negatives = [negative_prompt] * len(prompts) if isinstance(negative_prompt, str) else list(negative_prompt)
    if not prompts:
        raise ValueError("no prompt given")
    if len(negatives) != len(prompts):
        raise ValueError(f"{len(negatives)} negative prompts for {len(prompts)} prompts; give one, or one for each")
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}; expected one of {', '.join(SAMPLERS)}")
    timesteps = model.scheduler.timesteps(num_inference_steps)
    shape = latents_shape(model, len(prompts), height, width)
    if latents is None:
        latents = randn(shape, generator, model.device, model.dtype)
    elif latents.shape != shape:
        raise ValueError(f"latents have shape {tuple(latents.shape)}; expected {shape}")
    latents = latents.to(model.device, model.dtype)

    context = model.encode_prompt(prompts)
    negative_context = context if guidance_scale == 1 else model.encode_prompt(negatives)
    guided = GuidedPrediction(model.unet, context, negative_context, guidance_scale)

    def predict(latents: Tensor, t: int) -> tuple[Tensor, Tensor]:
        return model.scheduler.clean_and_noise(guided(latents, t), latents, t)

    for step in SAMPLERS[sampler](predict, latents, model.scheduler, timesteps, generator, **sampler_options):
        yield SampleStep(*step, evaluations=guided.evaluations)


@torch.no_grad()
def sample(
    model: StableDiffusion,
    prompts: str | Sequence[str],
    negative_prompt: str | Sequence[str] = "",
    output: str = "pil",
    **options: Any,
) -> list[Image.Image] | Tensor:
    """Draws one picture for each prompt.

    Args:
        output: "pil" for a list of pictures; "latents" for (b, c, h, w), scaled, as the sampler left them; "pixels" for
            (b, 3, H, W), about [-1, 1].
        options: the other arguments of `sample_steps`, with their defaults.

    Raises:
        ValueError: as `sample_steps`; unknown output.
    """
    if output not in OUTPUTS:
        raise ValueError(f"unknown output {output!r}; expected one of {', '.join(OUTPUTS)}")
    for step in sample_steps(model, prompts, negative_prompt, **options):
        latents = step.latents
    if output == "latents":
        return latents
    pixels = model.decode(latents)
    return pixels if output == "pixels" else to_pil(pixels)


def latents_shape(
    model: StableDiffusion, batch: int, height: int | None = None, width: int | None = None
) -> tuple[int, int, int, int]:
    """The shape of the latents of `batch` pictures of a size in pixels; the model's own size when absent.

    Raises:
        ValueError: a size that is no multiple of the VAE's factor.
    """
    factor, native = model.vae.config.factor, model.resolution
    height, width = native if height is None else height, native if width is None else width
    if height % factor or width % factor or height <= 0 or width <= 0:
        raise ValueError(f"{height} x {width} pixels: height and width must be multiples of {factor}")
    return (batch, model.unet.config.in_channels, height // factor, width // factor)
