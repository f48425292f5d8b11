"""What the parts are judged and drawn with: numbers that are the same every time, the toybox, a chart."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image
from torch import Tensor

import minti
from minti.diffusion.scheduler import NoiseScheduler
from minti.images import open_folder, to_pixels

CONCEPTS = Path(__file__).resolve().parents[2] / "concepts"
SCHEDULER = NoiseScheduler()  # SD v1.4's
BETAS, ALPHAS = SCHEDULER.betas, SCHEDULER.alphas_cumprod


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=seeded(seed))


@cache
def toybox() -> minti.StableDiffusion:
    """The bundled model, frozen."""
    model = minti.StableDiffusion.from_pretrained()
    model.freeze()
    return model


def scheduler_of(alphas_cumprod: Tensor) -> NoiseScheduler:
    """minti's formulas with a schedule of one's own, (T,)."""
    scheduler = NoiseScheduler()
    scheduler.alphas_cumprod = alphas_cumprod
    scheduler.betas = 1 - alphas_cumprod / torch.cat([torch.ones(1), alphas_cumprod[:-1]])
    return scheduler


def predicting_noise(model: minti.StableDiffusion) -> SimpleNamespace:
    """The model as one that predicts the noise, which the exercise is about; the toybox predicts velocity."""

    def unet(latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        return model.scheduler.clean_and_noise(model.unet(latents, timesteps, context), latents, timesteps)[1]

    config = replace(model.scheduler.config, prediction_type="epsilon")
    return SimpleNamespace(unet=unet, scheduler=NoiseScheduler(config))


def toys(name: str = "red-diamond-pink-belt") -> tuple[list[Image.Image], Tensor]:
    """A bundled concept's five pictures, and as pixels, (5, 3, 64, 64) in [-1, 1]."""
    pictures = open_folder(CONCEPTS / name)
    return pictures, torch.stack([to_pixels(picture, toybox().resolution) for picture in pictures])


def chart(
    title: str,
    lines: Mapping[str, Sequence[float]],
    x: Sequence[float] | None = None,
    names: tuple[str, str] = ("", ""),
    logarithmic: bool = False,
) -> Image.Image:
    """Lines over x, or over 0, 1, 2 ...; `names` of the two axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=names[0], ylabel=names[1], yscale="log" if logarithmic else "linear")
    for name, values in lines.items():
        axes.plot(range(len(values)) if x is None else x, values, label=name)
    axes.legend()
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return Image.open(buffer).convert("RGB")
