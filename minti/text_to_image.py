"""Prompts to pictures: noise, guided denoising, decode (lecture notes `002`, 7.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from minti.diffusion.composition import ComposedPrediction, Pull
from minti.diffusion.guidance import GuidedPrediction, shared_trajectory
from minti.diffusion.samplers import SAMPLERS, run_levels, run_timesteps
from minti.diffusion.scheduler import Level
from minti.diffusion.trajectory import Sampler
from minti.editing import from_picture
from minti.images import to_pil
from minti.machine.noise import Generators, randn
from minti.model import StableDiffusion

OUTPUTS = ("pil", "latents", "pixels")
Also = Sequence[tuple[str, float] | tuple[str, float, Tensor | None]]  # (prompt, weight) or (prompt, weight, mask)


class SampleStep(NamedTuple):
    """The state of `sample_steps` after a step.

    Attributes:
        timestep: the timestep that was left.
        latents: (b, c, h, w), scaled; (b, 4, 64, 64) in SD v1.4.
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
    also: Also = (),
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
        latents: (b or 1, c, h, w) initial standard normal noise; drawn when absent.
        height, width: in pixels; the size of `init_latents`, or the model's own, when absent.
        init_latents, strength, mask: a picture to begin from, (b or 1, c, h, w), how far to leave it, and which part of
            it, (b or 1, 1, h, w); see `editing.from_picture`.
        refresh_every, guidance_interval, share_unconditional: what guidance may save; see `GuidedPrediction`.
        also: further prompts that shape every picture, as (prompt, weight) or (prompt, weight, mask): the weight on the
            scale of `guidance_scale`, the mask (b or 1, 1, h, w) in [0, 1]; see `composition.Pull`.
        sampler_options: further arguments of the sampler: `eta` of DDIM, `karras` of DPM-Solver++, `variance` of DDPM.

    Raises:
        ValueError: unknown sampler, a size that is no multiple of the VAE's factor, or counts that do not match.
    """
    prompts, negatives = _one_for_each(prompts, negative_prompt)
    karras = sampler_options.get("karras", False)
    timesteps = run_timesteps(sampler, model.scheduler, num_inference_steps, karras)
    if init_latents is not None and height is None and width is None:
        height, width = (side * model.vae.config.factor for side in init_latents.shape[-2:])
    shape = model.latents_shape(len(prompts), height, width)
    drawn = randn(shape, generator, model.device, model.dtype) if latents is None else latents
    share = share_unconditional and guidance_scale != 1

    run: Sampler = partial(SAMPLERS[sampler], **sampler_options)
    run = shared_trajectory(run) if share else run
    levels = run_levels(sampler, model.scheduler, timesteps, karras)
    run = _edited(run, levels, model, shape, init_latents, strength, mask)
    options = {"refresh_every": refresh_every, "interval": guidance_interval, "last_is_unconditional": share}
    if also:
        options["also"] = _pulls(model, also, shape)
    noise = _fit(drawn, shape, "latents", model)
    yield from denoise(model, prompts, negatives, guidance_scale, noise, timesteps, run, generator, **options)


@torch.no_grad()
def denoise(
    model: StableDiffusion,
    prompts: list[str],
    negative_prompts: list[str],
    guidance_scale: float,
    noise: Tensor,
    timesteps: list[int],
    sampler: Sampler,
    generator: Generators,
    **options: Any,
) -> Iterator[SampleStep]:
    """The algorithm itself: noise, (b, c, h, w), to the latents of b pictures.

    Args:
        sampler: with its own options bound; see `trajectory.Sampler`.
        options: of `GuidedPrediction`, or with `also` of `ComposedPrediction`.
    """
    context = negative_context = model.encode_prompt(prompts)  # b m d, (b, 77, 768) in SD v1.4
    if guidance_scale != 1 or "also" in options:
        negative_context = _encode_each_once(model, negative_prompts)
    prediction = ComposedPrediction if "also" in options else GuidedPrediction
    guided = prediction(model.unet, context, negative_context, guidance_scale, **options)

    def predict(latents: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """(predicted clean latents, predicted noise), both (b, c, h, w)."""
        return model.scheduler.clean_and_noise(guided(latents, t), latents, t)

    for step in sampler(predict, noise, model.scheduler, timesteps, generator):
        yield SampleStep(step.timestep, step.latents, step.clean, guided.evaluations)


def _one_for_each(prompts: str | Sequence[str], negative: str | Sequence[str]) -> tuple[list[str], list[str]]:
    """Prompts and negative prompts as lists of one length."""
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    negatives = [negative] * len(prompts) if isinstance(negative, str) else list(negative)
    if not prompts:
        raise ValueError("no prompt given")
    if len(negatives) != len(prompts):
        raise ValueError(f"{len(negatives)} negative prompts for {len(prompts)} prompts; give one, or one for each")
    return prompts, negatives


def _encode_each_once(model: StableDiffusion, prompts: list[str]) -> Tensor:
    """As `encode_prompt`, for prompts that are mostly alike: usually all of them are empty."""
    distinct = list(dict.fromkeys(prompts))
    return model.encode_prompt(distinct)[[distinct.index(prompt) for prompt in prompts]]


def _pulls(model: StableDiffusion, also: Also, shape: tuple[int, ...]) -> list[Pull]:
    """Further prompts, encoded once and repeated for every picture, with masks of the latents' size."""
    pulls = []
    for prompt, weight, *masks in also:
        mask = None if not masks or masks[0] is None else _fit(masks[0], (shape[0], 1, *shape[2:]), "mask", model)
        pulls.append(Pull(model.encode_prompt(prompt).expand(shape[0], -1, -1), weight, mask))
    return pulls


def _edited(
    sampler: Sampler,
    levels: list[Level],
    model: StableDiffusion,
    shape: tuple[int, ...],
    init_latents: Tensor | None,
    strength: float,
    mask: Tensor | None,
) -> Sampler:
    """The sampler, begun with a picture if there is one."""
    if not 0 < strength <= 1:
        raise ValueError(f"strength = {strength}; expected more than 0 and at most 1")
    if init_latents is None:
        if mask is not None:
            raise ValueError("a mask says which part of init_latents to draw anew; give both")
        return sampler
    init_latents = _fit(init_latents, shape, "init_latents", model)
    mask = mask if mask is None else _fit(mask, (shape[0], 1, *shape[2:]), "mask", model)
    return from_picture(sampler, levels, init_latents, strength, mask)


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
    on_step: Callable[[SampleStep], None] = lambda step: None,
    **options: Any,
) -> list[Image.Image] | Tensor:
    """Draws one picture for each prompt.

    Args:
        output: "pil" for a list of pictures; "latents" for (b, c, h, w), scaled, as the sampler left them; "pixels" for
            (b, 3, H, W), about [-1, 1].
        on_step: called after every step, for a progress bar or a preview.
        options: the other arguments of `sample_steps`, with their defaults.

    Raises:
        ValueError: as `sample_steps`; unknown output; the latents have numbers that are not finite.
    """
    if output not in OUTPUTS:
        raise ValueError(f"unknown output {output!r}; expected one of {', '.join(OUTPUTS)}")
    for step in sample_steps(model, prompts, negative_prompt, **options):
        on_step(step)
    guidance = f"guidance_scale {options.get('guidance_scale', 7.5)}, {model.dtype}"
    otherwise = f"they have overflowed ({guidance}); try a lower guidance scale, bfloat16 or float32"
    model.check_finite("the pictures", step.latents, otherwise)
    if output == "latents":
        return step.latents
    pixels = model.decode(step.latents)
    return pixels if output == "pixels" else to_pil(pixels)
