"""A model folder's config files, and what suits a model."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from minti.utils import check, plugin


@dataclass(frozen=True)
class TextConfig:
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


@dataclass(frozen=True)
class ModelDefaults:
    """What suits a model: the keys of its `defaults.json`, which only minti reads; the defaults are SD v1's."""

    half_precision: bool = True  # whether bfloat16 may be taken where a machine is fast at it
    guidance_scale: float = 7.5
    batch_size: int = 1
    lora_learning_rate: float = 1e-4
    network_learning_rate: float = 5e-6  # where the whole UNet is trained
    tuning_steps: int = 800  # of LoRA and DreamBooth
    class_pictures: int = 200  # DreamBooth's class images
    initializer_token: str = "object"
    templates: str | tuple[str, ...] = "object"
    prompts: tuple[str, ...] = (
        "a photo of a {} on the beach",
        "a comic book illustration of a {}",
        "a black and white photo of a {}",
        "an oil painting of a {} in a forest",
        "a photo of a {} next to a cup of coffee",
    )


def read_config(kind: type, path: Path, **only: tuple[Any, ...]) -> Any:
    """A config file as the dataclass of its kind; `only`: further keys, and the values that they may have."""
    values = plugin("minti.formats.strict:read_json", lambda path: json.loads(path.read_bytes()))(path)
    known = [field.name for field in fields(kind)]
    check("formats.strict:check_config", kind, values, str(path), only)
    config = kind(**{key: tuple(x) if isinstance(x, list) else x for key, x in values.items() if key in known})
    check("formats.strict:check_made_config", config, str(path))
    return config
