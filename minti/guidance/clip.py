"""CLIP guidance by the gradient of CLIP's similarity to a text (universal guidance, arXiv 2302.07121)."""

from typing import Any

from minti.guidance.gradients import Guidance, universal_guidance
from minti.model import StableDiffusion

SCALE = 100.0  # of diffusers' CLIPGuidedStableDiffusion


def clip_guidance(model: StableDiffusion, clip: Any, text: str, scale: float = SCALE) -> Guidance:
    """The `guidance` of `minti.sample` towards images that a CLIP (`evaluation.clip_scores.Clip`) finds similar to the
    text. Freezes the model, with gradient checkpointing: every step has a backward pass."""
    model.freeze(checkpointing=True)
    distance = clip.unlikeness(text)
    return universal_guidance(model.scheduler, lambda clean: distance(model.decode(clean)), scale)
