"""The proof that a learned word looks at its thing: the share of its attention inside the toy's true outline.

Pictures that the world draws, whose outlines are therefore known, are noised and shown to the UNet; chance is the
outline's share of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import minti
import painting
import world
from minti.editing.attention_maps import AttentionMaps
from minti.images import from_bytes
from minti.utils import randn

TIMESTEPS = (100, 300, 500, 700)


@torch.no_grad()
def attention_inside(
    model: minti.StableDiffusion,
    toy: world.Toy,
    template: str,
    words: Sequence[str],
    count: int = 32,
    timesteps: Sequence[int] = TIMESTEPS,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Mean share of each word's attention inside the outline, and its standard error over the pictures.

    Args:
        template: the prompt, of a photo, with {} for each of `words` in turn.

    Returns:
        {word: (share, error)}; under "chance" the outline's share of the picture, under "photo, beside WORD" that of
        the template's other words.
    """
    scenes = [world.random_scene(np.random.default_rng((seed, 21, i)), toys=(toy,)) for i in range(count)]
    scenes = [replace(scene, style="photo") for scene in scenes]
    drawn = [painting.draw(scene, np.random.default_rng((seed, 22, i))) for i, scene in enumerate(scenes)]
    outlines = [painting.outline(scene, np.random.default_rng((seed, 22, i))) for i, scene in enumerate(scenes)]
    pixels = from_bytes(torch.from_numpy(np.stack(drawn)).mul(255).round()).permute(0, 3, 1, 2)
    inside = F.avg_pool2d(torch.from_numpy(np.stack(outlines))[:, None], model.vae.config.factor)[:, 0]
    latents = model.scale(model.encode(pixels).mean)
    noise = randn(latents.shape, torch.Generator().manual_seed(seed), latents.device, latents.dtype)
    shares = {"chance": inside.mean(dim=(1, 2))}
    for word in words:
        prompts = [template.replace("{}", word)] * count
        context = model.encode_prompt(prompts)
        with AttentionMaps(model, prompts) as maps:
            for t in timesteps:
                steps = torch.full((count,), t, device=latents.device)
                model.unet(model.scheduler.add_noise(latents, noise, steps), steps, context)
        shares[word] = share_inside(maps.of(word).cpu(), inside)
        for other in dict.fromkeys(template.replace("{}", "").split()):
            shares[f"{other}, beside {word}"] = share_inside(maps.of(other).cpu(), inside)
    return {name: (share.mean().item(), share.std().item() / count**0.5) for name, share in shares.items()}


def share_inside(maps: Tensor, inside: Tensor) -> Tensor:
    """How much of each map lies inside an outline: (b, h, w) and (b, h, w) in [0, 1] -> (b,).

    A map that looks everywhere alike has the outline's share of the area.
    """
    return (maps * inside).sum(dim=(1, 2)) / maps.sum(dim=(1, 2))
