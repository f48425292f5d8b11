"""minti: minimal textual inversion on Stable Diffusion v1.4, small enough to read in an afternoon."""

from minti.learning.checks import TrainingError
from minti.learning.dreambooth import DreamBooth, class_pictures, dreambooth
from minti.learning.run_state import read_run_state as load_checkpoint
from minti.learning.saving import save_checkpoint, save_embeddings
from minti.learning.settings import DreamBoothConfig, TextualInversionConfig, TrainingWrapper
from minti.learning.textual_inversion import diffusion_loss, prepare_for_textual_inversion, textual_inversion
from minti.learning.watching import TrainingState
from minti.model import TOYBOX, StableDiffusion
from minti.parts.lora import LoRA
from minti.parts.lora_files import load_lora, save_lora
from minti.text_to_image import sample, sample_steps
from minti.words.files import load_embeddings

__all__ = [
    "TOYBOX",
    "DreamBooth",
    "DreamBoothConfig",
    "LoRA",
    "StableDiffusion",
    "TextualInversionConfig",
    "TrainingError",
    "TrainingState",
    "TrainingWrapper",
    "class_pictures",
    "diffusion_loss",
    "dreambooth",
    "load_checkpoint",
    "load_embeddings",
    "load_lora",
    "prepare_for_textual_inversion",
    "sample",
    "sample_steps",
    "save_checkpoint",
    "save_embeddings",
    "save_lora",
    "textual_inversion",
]
