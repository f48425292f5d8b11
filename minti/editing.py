"""From a picture: another beginning of the run, a part that is kept, and the path back to the picture's own noise.

Each sampler of `minti.diffusion.samplers` leads from noise to a picture. `from_picture` turns it into one that begins
with a given picture (SDEdit, arXiv 2108.01073). With a mask it draws inside it only, and keeps the picture outside
(RePaint, arXiv 2201.09865, eq. 8; questions `003`, 16, whose mask is the other way round: there 1 keeps, here 1 draws).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from minti.diffusion.samplers import invert_ddim
from minti.diffusion.scheduler import Level, NoiseScheduler
from minti.diffusion.trajectory import Predict, Sampler, SamplerStep
from minti.images import to_pixels
from minti.machine.noise import Generators
from minti.model import StableDiffusion


def from_picture(
    sampler: Sampler, levels: Sequence[Level], init_latents: Tensor, strength: float = 0.8, mask: Tensor | None = None
) -> Sampler:
    """The sampler, begun late with a noised picture instead of early with noise alone.

    Args:
        levels: how much noise the run has at each of its timesteps; see `samplers.run_levels`.
        init_latents: (b, c, h, w), scaled: the picture.
        strength: in (0, 1], the share of the run that is left to do; 1 does all of it, and begins at pure noise.
        mask: (b, 1, h, w), 1 where to draw and 0 where to keep the picture, which is noised to the level that each step
            arrives at, and clean after the last; usually with strength 1.

    Raises:
        ValueError: a run of one step with a strength below 1.
    """
    start = len(levels) - max(1, int(len(levels) * strength))
    if start == 0 and strength < 1:
        raise ValueError(f"a run of one step begins at pure noise; strength = {strength} needs two steps or more")

    def run(
        predict: Predict,
        noise: Tensor,
        scheduler: NoiseScheduler,
        timesteps: list[int],
        generator: Generators = None,
        **options: Any,
    ) -> Iterator[SamplerStep]:
        latents = scheduler.add_noise(init_latents, noise, levels[start]) if start > 0 else noise
        number = start  # of the step that is under way
        if mask is None:
            yield from sampler(predict, latents, scheduler, timesteps, generator, start=start, **options)
            return

        def keep(latents: Tensor, number: int) -> Tensor:
            """The latents with their known part as it is at that step; behind the last: the clean picture."""
            if number == start:  # what a run begins with: pure noise, or else the whole picture at that level
                return latents
            known = scheduler.add_noise(init_latents, noise, levels[number]) if number < len(levels) else init_latents
            masked = mask * latents[: len(mask)] + (1 - mask) * known
            return torch.cat([masked, latents[len(mask) :]])  # a shared unconditional picture comes last, and is free

        def predict_kept(latents: Tensor, t: int) -> tuple[Tensor, Tensor]:
            # PNDM looks at the other end of its first step, too.
            return predict(keep(latents, number if t == timesteps[number] else number + 1), t)

        for step in sampler(predict_kept, latents, scheduler, timesteps, generator, start=start, **options):
            number += 1
            yield step._replace(latents=keep(step.latents, number))

    return run


@torch.no_grad()
def picture_latents(model: StableDiffusion, picture: Image.Image, height: int, width: int) -> Tensor:
    """A picture as `init_latents`: cropped to height x width pixels and encoded, (1, c, h, w), scaled.

    Raises:
        ValueError: a size that is no multiple of the VAE's factor.
    """
    model.latents_shape(1, height, width)
    return model.scale(model.encode(to_pixels(picture, (height, width))[None]).mean)


def latent_mask(mask: Image.Image, factor: int) -> Tensor:
    """A black and white picture as `mask`, (1, 1, h, w): a latent is drawn anew where any of its pixels is white.

    Args:
        mask: (h * factor) x (w * factor) pixels.
        factor: how many pixels a latent is wide.
    """
    pixels = torch.from_numpy(np.array(mask.convert("L"), dtype=np.float32))[None, None] / 255
    return F.max_pool2d(pixels, factor)


def fit_mask(mask: Image.Image, height: int, width: int) -> Image.Image:
    """A mask of any kind and size as black and white pixels, height x width."""
    return ImageOps.fit(mask.convert("L"), (width, height)).point(lambda value: 255 * (value > 127))


@torch.no_grad()
def inverted_noise(model: StableDiffusion, init_latents: Tensor, prompts: str | list[str], steps: int = 50) -> Tensor:
    """The noise from which DDIM, with the same prompts and steps and without guidance, draws the pictures again.

    DDIM inversion; questions `003`, 33.

    Args:
        init_latents: (b, c, h, w), scaled.
        prompts: what the pictures show, one for all or one for each.

    Returns:
        (b, c, h, w), for the `latents` of `minti.sample`; another prompt then edits the picture along its own path.
    """
    context = model.encode_prompt(prompts).expand(len(init_latents), -1, -1)

    def predict(latents: Tensor, t: int) -> tuple[Tensor, Tensor]:
        timesteps = torch.full((len(latents),), t, device=latents.device)
        return model.scheduler.clean_and_noise(model.unet(latents, timesteps, context), latents, t)

    for step in invert_ddim(predict, init_latents, model.scheduler, model.scheduler.timesteps(steps)):
        latents = step.latents
    return latents
