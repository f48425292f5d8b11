"""minti: minimal textual inversion on Stable Diffusion v1.4."""

from typing import Any

from minti.embeddings import load_embeddings, save_embeddings
from minti.model import TOYBOX, StableDiffusion
from minti.sampling import sample, sample_steps
from minti.textual_inversion import (
    TextualInversionConfig,
    diffusion_loss,
    prepare_for_textual_inversion,
    textual_inversion,
)
from minti.training import TrainingError
from minti.utils import plugin
from minti.wrapper import TrainingWrapper

# Public names of the families, imported when they are first used.
FAMILIES = {
    "monitored": "minti.runs.monitor",
    "TrainingState": "minti.runs.monitor",
    "load_checkpoint": "minti.runs.checkpoints",
    "save_checkpoint": "minti.runs.checkpoints",
    "DreamBooth": "minti.personalization.dreambooth",
    "DreamBoothConfig": "minti.personalization.dreambooth",
    "class_pictures": "minti.personalization.dreambooth",
    "dreambooth": "minti.personalization.dreambooth",
    "LoRA": "minti.adapters.lora",
    "load_lora": "minti.adapters.lora_files",
    "save_lora": "minti.adapters.lora_files",
}

__all__ = [
    "TOYBOX",
    "StableDiffusion",
    "TextualInversionConfig",
    "TrainingError",
    "TrainingWrapper",
    "diffusion_loss",
    "load_embeddings",
    "prepare_for_textual_inversion",
    "sample",
    "sample_steps",
    "save_embeddings",
    "textual_inversion",
    *FAMILIES,
]


def __getattr__(name: str) -> Any:
    if name not in FAMILIES:
        raise AttributeError(f"module 'minti' has no attribute {name!r}")
    return plugin(f"{FAMILIES[name]}:{name}")
