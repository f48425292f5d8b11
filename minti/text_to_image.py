"""Prompts to pictures: noise, guided denoising, decode. Also from a picture, or into the masked part of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from minti.diffusion.guidance import GuidedPrediction
from minti.diffusion.samplers import SAMPLERS, run_timesteps
from minti.images import to_pil
from minti.model import StableDiffusion
from minti.noise import Generators, randn

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
    init_latents: Tensor | None = None,
    strength: float = 0.8,
    mask: Tensor | None = None,
    refresh_every: int = 1,
    guidance_interval: tuple[int, int] | None = None,
    share_unconditional: bool = False,
    **sampler_options: Any,
) -> Iterator[SampleStep]:
    """Yields every denoising step for a batch of prompts; never decodes.

    Args:
        prompts: one picture for each.
        negative_prompt: one for all, or one for each prompt; what guidance pushes away from.
        guidance_scale: 1 switches guidance off.
        sampler: "ddpm", "ddim", "pndm" or "dpm-solver++".
        generator: one draws as diffusers draws for the batch; a list holds one per picture, so that a picture does not
            depend on its neighbours.
        latents: (b or 1, c, h, w) initial standard normal noise; drawn when absent. Where it is the same for all, they
            share the first unconditional prediction; `share_unconditional` asks for it.
        height, width: in pixels; the model's own size when absent.
        init_latents: (b or 1, c, h, w), scaled: a picture to begin from instead of noise (SDEdit, arXiv 2108.01073).
        strength: in (0, 1], the share of the run that is left to do when it begins from a picture; 1 does all of it.
        mask: (b or 1, 1, h, w), 1 where to draw and 0 where to keep `init_latents`, which are noised to the current
            level before each evaluation (questions `003`, 16); with a mask, the strength is usually 1.
        refresh_every, guidance_interval: see `GuidedPrediction`.
        share_unconditional: guide all pictures by one unconditional trajectory, which begins at the same noise as they.
        sampler_options: further arguments of the sampler: `eta` of DDIM, `karras` of DPM-Solver++, `variance` of DDPM.

    Raises:
        ValueError: unknown sampler, a size that is no multiple of the VAE's factor, or counts that do not match.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    negatives = [negative_prompt] * len(prompts) if isinstance(negative_prompt, str) else list(negative_prompt)
    if not prompts:
        raise ValueError("no prompt given")
    if len(negatives) != len(prompts):
        raise ValueError(f"{len(negatives)} negative prompts for {len(prompts)} prompts; give one, or one for each")
    if refresh_every < 1:
        raise ValueError(f"refresh_every = {refresh_every}; expected 1 (always) or more")
    if not 0 < strength <= 1:
        raise ValueError(f"strength = {strength}; expected more than 0 and at most 1")
    if mask is not None and init_latents is None:
        raise ValueError("a mask says which part of init_latents to draw anew; give both")
    scheduler, share = model.scheduler, share_unconditional and guidance_scale != 1
    timesteps = run_timesteps(sampler, scheduler, num_inference_steps, sampler_options.get("karras", False))
    if init_latents is not None and height is None and width is None:
        height, width = (side * model.vae.config.factor for side in init_latents.shape[-2:])
    shape = latents_shape(model, len(prompts), height, width)
    if latents is None:
        latents = randn(shape, generator, model.device, model.dtype)
    noise = latents = _fit(latents, shape, "latents", model)

    start = 0
    if init_latents is not None:
        init_latents = _fit(init_latents, shape, "init_latents", model)
        start = len(timesteps) - max(1, int(len(timesteps) * strength))
        if start > 0:  # otherwise the run begins at pure noise, as without a picture
            latents = scheduler.add_noise(init_latents, noise, timesteps[start])
    if mask is not None:
        mask = _fit(mask, (shape[0], 1, *shape[2:]), "mask", model)

    context = model.encode_prompt(prompts)
    negative_context = context
    if guidance_scale != 1:
        distinct = list(dict.fromkeys(negatives))  # usually the empty prompt alone
        negative_context = model.encode_prompt(distinct)[[distinct.index(negative) for negative in negatives]]
    if share:
        if not (latents == latents[:1]).all() or len(set(negatives)) > 1:
            raise ValueError(
                "share_unconditional needs one negative prompt and the same initial noise for all pictures"
            )
        if isinstance(generator, Sequence):
            generator = [*generator, generator[0].clone_state()]
        latents, context = torch.cat([latents, latents[:1]]), torch.cat([context, negative_context[:1]])
    guided = GuidedPrediction(
        model.unet, context, negative_context, guidance_scale, refresh_every, guidance_interval, share
    )

    def keep(latents: Tensor, t: int) -> Tensor:
        """The latents with their known part as it is at timestep t; -1: the clean picture."""
        if mask is None:
            return latents
        known = scheduler.add_noise(init_latents, noise, t) if t >= 0 else init_latents
        return torch.cat([mask * latents[: len(mask)] + (1 - mask) * known, latents[len(mask) :]])

    def predict(latents: Tensor, t: int) -> tuple[Tensor, Tensor]:
        latents = keep(latents, t)
        return scheduler.clean_and_noise(guided(latents, t), latents, t)

    following = [*timesteps[start + 1 :], -1]
    for step in SAMPLERS[sampler](predict, latents, scheduler, timesteps, generator, start=start, **sampler_options):
        kept = keep(step.latents, following.pop(0))[: len(prompts)]
        yield SampleStep(step.timestep, kept, step.clean[: len(prompts)], guided.evaluations)


def _fit(tensor: Tensor, shape: tuple[int, ...], name: str, model: StableDiffusion) -> Tensor:
    """The tensor on the model's device, in its dtype; one for all pictures is repeated."""
    if tensor.ndim != 4 or tensor.shape[1:] != shape[1:] or len(tensor) not in (1, shape[0]):
        raise ValueError(f"{name} have shape {tuple(tensor.shape)}; expected {shape}, or 1 in place of {shape[0]}")
    return tensor.to(model.device, model.dtype).expand(shape)


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
