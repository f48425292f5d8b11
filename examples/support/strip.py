"""A sampling trajectory: the latents of each step, decoded, and the clean image predicted there."""

from support.pages import page

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import minti
from minti.adapters.tiny_decoder import TinyVAE
from minti.denoising import SampleStep
from minti.evaluation.grids import grid
from minti.images import to_pil


class Trajectory:
    """Collects the steps of one image of a batch; decodes only those that are shown, all but the last by the tiny
    decoder, if there is one."""

    def __init__(self, tiny: TinyVAE | None = None) -> None:
        self.tiny = tiny
        self.steps: list[tuple[int, Tensor, Tensor]] = []  # timestep, latents, clean; (1, c, h, w)

    def add(self, step: SampleStep, index: int) -> None:
        """Keeps image `index` of a batch's step; for `on_step` of `minti.sample`."""
        own = slice(index, index + 1)
        self.steps.append((step.timestep, step.latents[own].clone(), step.clean[own].clone()))

    def decoded(self, model: minti.StableDiffusion, count: int) -> list[tuple[int, Image.Image, Image.Image]]:
        """At most `count` steps, evenly spread, the last among them: timestep, the latents, the predicted image."""
        every = -(-len(self.steps) // count)
        chosen = self.steps[::-1][::every][::-1]
        preview = model.decode if self.tiny is None else self.tiny.decode
        decoders = [*[preview] * (len(chosen) - 1), model.decode]
        with torch.no_grad():
            return [(t, *(to_pil(decode(x))[0] for x in both)) for decode, (t, *both) in zip(decoders, chosen)]

    def strip(self, model: minti.StableDiffusion, count: int = 10, size: int = 128) -> Image.Image:
        """Two rows, from noise to image: the latents after each step, and the clean image predicted before it."""
        steps = self.decoded(model, count)
        rows = [
            ("the latents, decoded", [latents for _, latents, _ in steps]),
            ("the clean image predicted", [clean for _, _, clean in steps]),
        ]
        return page(rows, size, [f"t = {t}" for t, _, _ in steps])

    def save_animation(self, path: Path, model: minti.StableDiffusion, count: int = 25, size: int = 256) -> None:
        """A GIF that repeats: the latents on the left, the predicted image on the right."""
        frames = []
        for _, *both in self.decoded(model, count):
            scale = max(1, size // both[0].width)
            enlarged = [one.resize((one.width * scale, one.height * scale), Image.Resampling.NEAREST) for one in both]
            frames.append(grid(enlarged, columns=2, gap=4))
        durations = [120] * (len(frames) - 1) + [2000]
        frames[0].save(path, "gif", save_all=True, append_images=frames[1:], duration=durations, loop=0)
