"""A task for edits: painted scenes of which one colour is to change and all else to stay."""

from __future__ import annotations

from support.command_line import generators

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

import minti
import world
from minti.utils import randn
from painting import draw

SHORT = "a photo of a {0.main} {0.shape} with a {0.second} {0.pattern}"
LONG = "a photo of a {1.size} {0.main} {0.shape} with a {0.second} {0.pattern} {1.place} on a {1.background} background"


@dataclass
class Task:
    """Painted scenes whose toys are to have another main colour.

    Attributes:
        pictures: (b, 3, 64, 64) in [-1, 1]; `latents`, (b, c, h, w), their encodings.
        noise: (b, c, h, w), one for each.
        scenes, colours: what they show, and the wanted colours.
    """

    pictures: Tensor
    latents: Tensor
    noise: Tensor
    scenes: list[world.Scene]
    colours: list[str]

    def prompts(self, template: str) -> tuple[list[str], list[str]]:
        """What the pictures show, and what they are to show."""
        toys = [scene.toys[0] for scene in self.scenes]
        wanted = [replace(toy, main=colour) for toy, colour in zip(toys, self.colours)]
        return tuple([template.format(toy, s) for toy, s in zip(of, self.scenes)] for of in (toys, wanted))


def task(model: minti.StableDiffusion, seeds: Sequence[int]) -> Task:
    """Scene i, its wanted colour, its grain and the noise that it is drawn from are those of seed i."""
    scenes, colours, painted = [], [], []
    for seed in seeds:
        rng = np.random.default_rng((22, seed))
        scene = replace(world.random_scene(rng, pair_rate=0), style="photo")
        toy = scene.toys[0]
        scenes.append(scene)
        colours.append(str(rng.choice([c for c in world.COLOURS if c not in (toy.main, toy.second)])))
        painted.append(draw(scene, np.random.default_rng((23, seed))))
    pictures = torch.from_numpy(np.stack(painted)).permute(0, 3, 1, 2) * 2 - 1  # b h w c -> b c h w
    latents = model.scale(model.encode(pictures).mean)
    noise = randn(latents.shape, [generators(seed, 1)[0] for seed in seeds], model.device, model.dtype)
    return Task(pictures, latents, noise, scenes, colours)
