"""Outlines as hints for a ControlNet, and how well what was drawn keeps to them.

A hint is a white line on black, drawn along where the toys are. Whether a pixel of a drawing belongs to a toy is seen
from the background, whose colour the rim of the picture tells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from painting import outline
from world import Scene

SHADES = torch.linspace(0.4, 1.2, 33)  # how dark a shadow, or the light from above, makes a background
DISTANCE = 0.22  # in RGB from every shade of the background: a toy


def masks(scenes: Sequence[Scene], seeds: Sequence[object]) -> Tensor:
    """Where the toys are in the pictures that `painting.draw` makes with these seeds, (n, 1, 64, 64) in [0, 1]."""
    covers = [outline(scene, np.random.default_rng(seed)) for scene, seed in zip(scenes, seeds)]
    return torch.from_numpy(np.stack(covers))[:, None]


def hints(masks: Tensor) -> Tensor:
    """The line along the rim of each mask, some two pixels wide: (n, 1, H, W) -> (n, 3, H, W), both in [0, 1]."""
    grown, shrunk = F.max_pool2d(masks, 3, 1, 1), -F.max_pool2d(-masks, 3, 1, 1)
    return (grown - shrunk).expand(-1, 3, -1, -1)


def drawn_masks(pixels: Tensor) -> Tensor:
    """What is no background in pictures (n, 3, H, W) in [-1, 1], as (n, 1, H, W) of 0 and 1."""
    unit = (pixels.float().clamp(-1, 1) + 1) / 2
    rim = torch.cat([unit[..., 0, :], unit[..., -1, :], unit[..., :, 0], unit[..., :, -1]], dim=-1)  # n 3 2(H+W)
    background = rim.median(dim=-1).values[:, :, None] * SHADES  # n 3 shades
    distances = (unit[:, :, None] - background[..., None, None]).square().sum(dim=1).sqrt()  # n shades H W
    return (distances.amin(dim=1, keepdim=True) > DISTANCE).float()


def overlap(drawn: Tensor, wanted: Tensor) -> Tensor:
    """Intersection over union of masks (n, 1, H, W): (n,) in [0, 1]."""
    drawn, wanted = drawn > 0.5, wanted > 0.5
    return (drawn & wanted).sum(dim=(1, 2, 3)) / (drawn | wanted).sum(dim=(1, 2, 3)).clamp(min=1)
