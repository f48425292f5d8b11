"""Image to image (img2img, SDEdit) and inpainting: `minti.sample(..., begin=ImageToImage(init_latents, 0.6))`."""

from dataclasses import dataclass, replace

from torch import Tensor

from minti.denoising import Run
from minti.runs.messages import short_repr
from minti.sampling import expand
from minti.scheduler import Level


@dataclass(frozen=True)
class ImageToImage:
    """Image to image begins late in the run, with a noised image instead of noise (SDEdit, arXiv 2108.01073).
    Inpainting samples inside a mask, and keeps the image outside, noised to the level of each step (RePaint, arXiv
    2201.09865, eq. 8; questions `003`, 16, where 1 in the mask keeps; here 1 samples).

    init_latents: (b or 1, c, h, w), scaled: the image.
    strength: in (0, 1], the share of the run that is done; 1 begins at pure noise.
    mask: (b or 1, 1, h, w), 1 where to sample, 0 where to keep; usually with strength 1. None: everywhere."""

    init_latents: Tensor
    strength: float = 0.8
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength = {short_repr(self.strength)}; expected more than 0 and at most 1")

    def __call__(self, run: Run) -> Run:
        noise, start = run.latents, self.start(len(run.stops) - 1)
        image = expand(self.init_latents, noise.shape, "init_latents").to(noise)

        def noised(level: Level) -> Tensor:
            return run.scheduler.add_noise(image, noise, level)

        run = replace(run, start=start, latents=noised(run.stops[start].level) if start > 0 else noise)
        if self.mask is None:
            return run
        mask = expand(self.mask, noise[:, :1].shape, "mask").to(noise)
        return replace(run, keep=lambda latents, level: mask * latents + (1 - mask) * noised(level))

    def start(self, steps: int) -> int:
        """The first step of a run of so many."""
        start = steps - max(1, int(steps * self.strength))
        if start == 0 and self.strength < 1:
            needs = f"strength = {self.strength} needs two steps or more"
            raise ValueError(f"a run of one step begins at pure noise; {needs}")
        return start
