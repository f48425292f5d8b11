"""The text encoder of a model folder: Hugging Face's class, built from the keys that minti knows.

Its own loader obeys whatever a config says, down to which attention kernel to fetch from the hub and run.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from minti.checkpoints.weights import build, fill, load_config, read_part
from minti.machine.configs import Config, check_range, check_types


@dataclass(frozen=True)
class TextConfig(Config):
    """The keys of `text_encoder/config.json` that minti obeys; the defaults are SD v1.4's."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    bos_token_id: int | None = 0
    eos_token_id: int | None = 2
    pad_token_id: int | None = 1

    STRICT = False  # the file repeats the defaults of everything that Hugging Face's models can do

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, 1, 2**24, "vocab_size")
        check_range(self, 1, 2**16, "hidden_size", "intermediate_size", "max_position_embeddings")
        check_range(self, 1, 128, "num_hidden_layers", "num_attention_heads")
        check_range(self, 1e-12, 1, "layer_norm_eps")
        check_range(self, 0, 2**24, "bos_token_id", "eos_token_id", "pad_token_id")
        if self.hidden_act not in ("quick_gelu", "gelu"):
            raise ValueError(f"hidden_act = {self.hidden_act!r}; expected 'quick_gelu' or 'gelu'")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size = {self.hidden_size} is no multiple of {self.num_attention_heads} heads")

    def hugging_face(self) -> CLIPTextConfig:
        """The same as transformers' config."""
        return CLIPTextConfig(**asdict(self))


def rename_text_keys(tensors: dict[str, Tensor], model: CLIPTextModel) -> dict[str, Tensor]:
    """To the model's own names: a file, and the model itself before transformers 5.6, may have a level `text_model.`.

    `position_ids` (0 .. 76), in older files, is no weight.
    """
    own = {key.removeprefix("text_model."): key for key in model.state_dict()}
    return {
        own.get(key.removeprefix("text_model."), key): tensor
        for key, tensor in tensors.items()
        if not key.endswith("position_ids")
    }


def fill_text_encoder(model: CLIPTextModel, *args: object) -> CLIPTextModel:
    """As `fill`; and gives storage to a buffer that no file holds."""
    fill(model, *args)
    positions = torch.arange(model.config.max_position_embeddings, device=model.device)
    embeddings = next(module for module in model.modules() if hasattr(module, "position_ids"))
    embeddings.register_buffer("position_ids", positions.expand((1, -1)), persistent=False)
    return model


def load_text_encoder(
    folder: Path, dtype: torch.dtype | None, device: torch.device, variant: str | None = None
) -> CLIPTextModel:
    """Hugging Face's text model with the weights of a model folder's `text_encoder/`."""
    config = load_config(TextConfig, folder / "config.json").hugging_face()
    path, tensors = read_part(folder, "model", dtype, variant)
    model = build(lambda: CLIPTextModel(config), folder / "config.json")
    return fill_text_encoder(model, rename_text_keys(tensors, model), path, dtype, device)
