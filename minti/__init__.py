"""minti: minimal textual inversion on Stable Diffusion v1.4, small enough to read in an afternoon."""

from minti.model import TOYBOX, StableDiffusion
from minti.text_to_image import sample, sample_steps

__all__ = ["TOYBOX", "StableDiffusion", "sample", "sample_steps"]
