"""Image to image (img2img, SDEdit) and inpainting: a run that begins with an image, and keeps what is outside a mask.

What `minti.sample` takes as `begin`: `begin=ImageToImage(init_latents, strength=0.6)`.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from minti.denoising import Run
from minti.runs.messages import short_repr
from minti.sampling import expand
from minti.scheduler import Level


@dataclass(frozen=True)
class ImageToImage:
    """Begins late with a noised image, instead of early with noise alone (SDEdit, arXiv 2108.01073). With a mask it is
    inpainting: samples inside it only, and keeps the image outside (RePaint, arXiv 2201.09865, eq. 8; questions `003`,
    16, where the mask is the other way round: there 1 keeps, here 1 samples).

    Attributes:
        init_latents: (b or 1, c, h, w), scaled: the image.
        strength: in (0, 1], the share of the run that is left to do; 1 does all of it, and begins at pure noise.
        mask: (b or 1, 1, h, w), 1 where to sample and 0 where to keep the image, which is noised to the level of every
            step, and clean after the last; usually with strength 1. None: everywhere.

    Raises ValueError: a strength out of range or below 1 in a run of one step, or tensors of other shapes.
    """

    init_latents: Tensor
    strength: float = 0.8
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength = {short_repr(self.strength)}; expected more than 0 and at most 1")

    def __call__(self, run: Run) -> Run:
        """The run, begun with the image."""
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
        """Which step of a run is the first. Raises ValueError: a run of one step has no later one."""
        start = steps - max(1, int(steps * self.strength))
        if start == 0 and self.strength < 1:
            raise ValueError(
                f"a run of one step begins at pure noise; strength = {self.strength} needs two steps or more"
            )
        return start
