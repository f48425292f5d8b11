"""From a picture: another beginning of the run, a part that is kept, and the path back to the picture's own noise.

A run leads from noise to a picture. `from_picture` begins it with a given one (SDEdit, arXiv 2108.01073). With a mask
it draws inside it only, and keeps the picture outside (RePaint, arXiv 2201.09865, eq. 8; questions `003`, 16, where the
mask is the other way round: there 1 keeps, here 1 draws).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from minti.diffusion.guidance import unguided
from minti.diffusion.samplers import DDIM
from minti.diffusion.scheduler import Level
from minti.diffusion.steps import Predict, Run, SampleStep
from minti.machine.messages import shown
from minti.model import StableDiffusion


def from_picture(
    run: Run, init_latents: Tensor | None = None, strength: float = 0.8, mask: Tensor | None = None
) -> Run:
    """The run, begun late with a noised picture instead of early with standard normal noise alone, (b, c, h, w).

    Args:
        init_latents: (b or 1, c, h, w), scaled: the picture; None leaves the run as it is.
        strength: in (0, 1], the share of the run that is left to do; 1 does all of it, and begins at pure noise.
        mask: (b or 1, 1, h, w), 1 where to draw and 0 where to keep the picture, which is noised to the level that each
            step arrives at, and clean after the last; usually with strength 1.

    Raises ValueError: a strength out of range or below 1 in a run of one step, a mask without a picture, other shapes.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength = {shown(strength)}; expected more than 0 and at most 1")
    if init_latents is None:
        if mask is not None:
            raise ValueError("a mask says which part of init_latents to draw anew; give both")
        return run
    noise, steps = run.latents, len(run.stops) - 1
    start = steps - max(1, int(steps * strength))
    if start == 0 and strength < 1:
        raise ValueError(f"a run of one step begins at pure noise; strength = {strength} needs two steps or more")

    def known(level: Level) -> Tensor:
        return run.scheduler.add_noise(picture, noise, level)

    picture = fitted(init_latents, noise.shape, "init_latents").to(noise)
    run = replace(run, start=start, latents=known(run.stops[start].level) if start > 0 else noise)
    if mask is None:
        return run
    mask = fitted(mask, noise[:, :1].shape, "mask").to(noise)
    return replace(run, keep=lambda latents, level: mask * latents + (1 - mask) * known(level))


def fitted(tensor: Tensor, shape: Sequence[int], name: str) -> Tensor:
    """The tensor in that shape; one for all pictures is repeated. Raises ValueError: it has another shape."""
    if tensor.ndim != len(shape) or tensor.shape[1:] != shape[1:] or len(tensor) not in (1, shape[0]):
        expected = f"expected {tuple(shape)}, or 1 in place of {shape[0]}"
        raise ValueError(f"{name} have shape {tuple(tensor.shape)}; {expected}")
    return tensor.expand(shape)


def invert_ddim(predict: Predict, run: Run, iterations: int = 0) -> Iterator[SampleStep]:
    """DDIM backwards in time, from a clean picture's latents, the run's, to the noise that DDIM would draw it from.

    The step from level s up to level t solves DDIM's update for x_t, with the prediction taken at x_s instead of x_t
    (questions `003`, 33; arXiv 2105.05233, appendix F). `iterations`: how often x_t is then mended by what a step down
    from it misses of x_s, whose fixed point DDIM leads back from exactly (as arXiv 2309.04907 iterates).
    """
    latents, scheduler = run.latents, run.scheduler
    for t, level in reversed(run.stops[run.start : -1]):
        # The network is told the timestep it goes to; the latents are still at the level below.
        below = scheduler.level(run.below(t))
        clean, noise = scheduler.clean_and_noise(predict(latents, t), latents, below)
        above = scheduler.add_noise(clean, noise, level)
        for _ in range(iterations):
            # x_t <- x_t + x_s - DDIM(x_t)
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
    """The noise from which DDIM, with the same prompts and steps and without guidance, draws the pictures again.

    `init_latents`: (b, c, h, w), scaled. `prompts`: what they show, one for all or one for each; words or contexts.
    `strength`: the share of the path that is gone back. Returns (b, c, h, w), for the `latents` of `minti.sample`, with
    `init_latents` and `strength` too where it is below 1; another prompt then edits the picture along its own path.

    Raises ValueError: as `from_picture`.
    """
    context = prompts if isinstance(prompts, Tensor) else model.encode_prompt(prompts)
    run = Run(init_latents, model.scheduler, DDIM().stops(model.scheduler, steps))
    start = from_picture(run, init_latents, strength).start
    predict = unguided(model.unet, context.expand(len(init_latents), -1, -1))
    *_, last = invert_ddim(predict, replace(run, start=start), iterations)
    # Below strength 1 `from_picture` adds the noise to the picture: that which makes the inverted latents of it.
    level = run.stops[start].level
    return model.scheduler.noise_from_clean(last.latents, init_latents, level) if start else last.latents
