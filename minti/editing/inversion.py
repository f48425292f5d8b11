"""DDIM inversion: the noise from which DDIM samples a given image again."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from minti.denoising import DDIM, Predict, Run, SampleStep
from minti.editing.image_to_image import ImageToImage
from minti.model import StableDiffusion
from minti.sampling import conditional


def invert_ddim(predict: Predict, run: Run, iterations: int = 0) -> Iterator[SampleStep]:
    """DDIM inversion, from the run's latents, a clean image's, to noise. The step from level s up to t solves DDIM's
    update for x_t, with the prediction at x_s instead of x_t (questions `003`, 33; arXiv 2105.05233, appendix F).
    `iterations`: how often x_t is then corrected by x_s - DDIM(x_t); the fixed point is exact (arXiv 2309.04907)."""
    latents, scheduler = run.latents, run.scheduler
    for t, level in reversed(run.stops[run.start : -1]):
        # The network gets the timestep it goes to; the latents are still at the level below.
        below = scheduler.level(run.prev_timestep(t))
        clean, noise = scheduler.clean_and_noise(predict(latents, t), latents, below)
        above = scheduler.add_noise(clean, noise, level)
        for _ in range(iterations):
            clean, noise = scheduler.clean_and_noise(predict(above, t), above, level)
            above = above + latents - scheduler.add_noise(clean, noise, below)
        latents = above
        yield SampleStep(t, latents, clean)


@torch.no_grad()
def inverted_noise(
    model: StableDiffusion,
    init_latents: Tensor,
    prompts: str | list[str] | Tensor,
    steps: int = 50,
    strength: float = 1.0,
    iterations: int = 2,
) -> Tensor:
    """The noise from which DDIM, with the same prompts and steps and without guidance, samples the images again.

    `init_latents`: (b, c, h, w), scaled. `prompts`: what they show, one for all or one for each; words or contexts.
    `strength`: the share of the run that is inverted. Returns (b, c, h, w), for the `latents` of `minti.sample`, with
    `begin=ImageToImage(init_latents, strength)` where it is below 1; another prompt then edits the image."""
    context = prompts if isinstance(prompts, Tensor) else model.encode_prompt(prompts)
    run = Run(init_latents, model.scheduler, DDIM().stops(model.scheduler, steps))
    start = ImageToImage(init_latents, strength).start(steps)
    predict = conditional(model.unet, context.expand(len(init_latents), -1, -1))
    *_, last = invert_ddim(predict, replace(run, start=start), iterations)
    # Below strength 1 `ImageToImage` adds noise to the image: the noise that gives the inverted latents.
    level = run.stops[start].level
    return model.scheduler.noise_from_clean(last.latents, init_latents, level) if start else last.latents
