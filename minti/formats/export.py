"""A model into a folder in the layout of SD v1.4, which minti and diffusers open."""

import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTokenizer

from minti.loading import DEFAULTS, NETWORK
from minti.model import StableDiffusion
from minti.runs.messages import one_line

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "feature_extractor": [None, None],
    "safety_checker": [None, None],
}


def save_folder(model: StableDiffusion, folder: Path) -> None:
    """Writes a model, all at once; words that were added to the vocabulary are left out.
    Raises OSError: it cannot be written, or something stands there already, which is left as it is."""
    unet, vae, text_encoder, tokenizer = model.unet, model.vae, model.text_encoder, model.tokenizer
    if folder.is_dir() and any(folder.iterdir()):
        raise OSError(f"{folder} is not empty; remove it, or give another name")
    folder.parent.mkdir(parents=True, exist_ok=True)
    begun = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        rows = tokenizer.vocab_size
        text = {key: t[:rows] if "token_embedding" in key else t for key, t in text_encoder.state_dict().items()}
        text = {f"text_model.{key.removeprefix('text_model.')}": tensor for key, tensor in text.items()}
        levels = len(vae.config.block_out_channels)
        kinds = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
        _json(begun / "unet/config.json", {"_class_name": "UNet2DConditionModel"} | asdict(unet.config))
        _weights(begun / f"unet/{NETWORK}.safetensors", unet.state_dict())
        _json(begun / "vae/config.json", {"_class_name": "AutoencoderKL"} | asdict(vae.config) | kinds)
        _weights(begun / f"vae/{NETWORK}.safetensors", vae.state_dict())
        _json(begun / "text_encoder/config.json", text_encoder.config.to_dict() | {"vocab_size": rows})
        _weights(begun / "text_encoder/model.safetensors", text)
        schedule = {key: value for key, value in asdict(model.scheduler.config).items() if value is not None}
        kind = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "clip_sample": False}
        _json(begun / "scheduler/scheduler_config.json", kind | schedule)
        _tokenizer(begun / "tokenizer", tokenizer)
        _json(begun / "model_index.json", INDEX)
        _json(begun / DEFAULTS, asdict(model.defaults))
        begun.chmod(0o755)
        os.replace(begun, folder)
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot write {folder}: {one_line(error)}") from None
    finally:
        shutil.rmtree(begun, ignore_errors=True)


def _tokenizer(folder: Path, tokenizer: CLIPTokenizer) -> None:
    """vocab.json, merges.txt and the special tokens, as SD v1.4 has them."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    _json(folder / "vocab.json", model["vocab"])
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    sizes = {"model_max_length": tokenizer.model_max_length, "do_lower_case": True}
    _json(folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer"} | special | sizes)
    _json(folder / "special_tokens_map.json", special)


def _weights(path: Path, tensors: dict[str, Tensor]) -> None:
    # clone: safetensors writes no views, and a mapped file's tensors share its storage
    save_file({key: tensor.detach().cpu().clone() for key, tensor in tensors.items()}, path, {"format": "pt"})


def _json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
