"""Outlines as control images for a ControlNet, and the overlap (IoU) of samples with them.

A control image is the toys' outline in white on black. In a sample, a pixel belongs to a toy if its colour differs from
the background, whose colour is the median along the border of the image.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from painting import outline
from world import Scene

SHADES = torch.linspace(0.4, 1.2, 33)  # brightness of a background in shadow and light
DISTANCE = 0.22  # RGB distance from all shades of the background, from which on a pixel belongs to a toy


def masks(scenes: Sequence[Scene], seeds: Sequence[object]) -> Tensor:
    """Segmentation masks of the images that `painting.draw` renders with these seeds, (n, 1, 64, 64) in [0, 1]."""
    covers = [outline(scene, np.random.default_rng(seed)) for scene, seed in zip(scenes, seeds)]
    return torch.from_numpy(np.stack(covers))[:, None]


def hints(masks: Tensor) -> Tensor:
    """Control images: the outline of each mask, two pixels wide: (n, 1, H, W) -> (n, 3, H, W), both in [0, 1]."""
    grown, shrunk = F.max_pool2d(masks, 3, 1, 1), -F.max_pool2d(-masks, 3, 1, 1)
    return (grown - shrunk).expand(-1, 3, -1, -1)


def drawn_masks(pixels: Tensor) -> Tensor:
    """Foreground masks (n, 1, H, W), 0 or 1, of images (n, 3, H, W) in [-1, 1]."""
    unit = (pixels.float().clamp(-1, 1) + 1) / 2
    rim = torch.cat([unit[..., 0, :], unit[..., -1, :], unit[..., :, 0], unit[..., :, -1]], dim=-1)  # n 3 2(H+W)
    background = rim.median(dim=-1).values[:, :, None] * SHADES  # n 3 shades
    distances = (unit[:, :, None] - background[..., None, None]).square().sum(dim=1).sqrt()  # n shades H W
    return (distances.amin(dim=1, keepdim=True) > DISTANCE).float()


def overlap(drawn: Tensor, wanted: Tensor) -> Tensor:
    """Intersection over union (IoU) of masks (n, 1, H, W): (n,) in [0, 1]."""
    drawn, wanted = drawn > 0.5, wanted > 0.5
    return (drawn & wanted).sum(dim=(1, 2, 3)) / (drawn | wanted).sum(dim=(1, 2, 3)).clamp(min=1)
