"""What the parts are judged and drawn with: numbers that are the same every time, the toybox, a chart."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

import minti
from minti.formats.image_files import open_folder
from minti.images import to_pixels
from minti.scheduler import NoiseScheduler

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
    """A bundled concept's five images, and as pixels, (5, 3, 64, 64) in [-1, 1]."""
    images = open_folder(CONCEPTS / name)
    return images, torch.stack([to_pixels(image, toybox().resolution) for image in images])


def gradient(value: Any, of: Tensor) -> Tensor | str:
    """What `backward` would leave in `of.grad`."""
    if not isinstance(value, Tensor) or not value.requires_grad or value.numel() != 1:
        return "no gradient"
    (found,) = torch.autograd.grad(value, of, retain_graph=True, allow_unused=True)
    return "no gradient" if found is None else found


def captioned(
    images: Sequence[Image.Image], captions: Sequence[str], columns: int, titles: Sequence[str] = ()
) -> Image.Image:
    """Images twice as large, row by row, each above its caption; a row's title is above it."""
    side, gap, line = 2 * images[0].width, 8, 14
    above = line if titles else 0
    height, rows = above + side + line + gap, -(-len(images) // columns)
    page = Image.new("RGB", (columns * (side + gap) - gap, rows * height), "white")
    draw = ImageDraw.Draw(page)
    for i, title in enumerate(titles):
        draw.text((0, i * height), title, "black")
    for i, (image, caption) in enumerate(zip(images, captions)):
        x, y = i % columns * (side + gap), i // columns * height + above
        page.paste(image.resize((side, side), Image.Resampling.NEAREST), (x, y))
        draw.text((x, y + side), caption, "black")
    return page


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
    for i, (name, values) in enumerate(lines.items()):
        width = 1.2 + 0.9 * (len(lines) - 1 - i)  # a line is seen also where the next one lies on it
        axes.plot(range(len(values)) if x is None else x, values, label=name, linewidth=width)
    axes.legend()
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return Image.open(buffer).convert("RGB")
