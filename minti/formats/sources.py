"""Loads what is not a plain model folder: an original single file (`.ckpt`, `.safetensors`), or an id on the hub."""

import os
from pathlib import Path
from typing import Any

import torch

from minti.configs import ModelDefaults
from minti.formats import hub
from minti.formats.single_file import SCHEDULER_CONFIG, load_single_file
from minti.formats.strict import load_tokenizer
from minti.loading import load_folder
from minti.scheduler import NoiseScheduler

APPLY = {"folder": ("variant",), "single file": ("tokenizer", "ema"), "hub id": ("variant", "revision")}


def load_source(
    source: str | os.PathLike[str], device: torch.device, dtype: torch.dtype | None, **options: Any
) -> dict[str, Any]:
    """The parts of a model by their names, as from `minti.loading.load_folder`."""
    path = Path(source)
    if not path.exists() and path.suffix in (".ckpt", ".safetensors", ".pt", ".bin"):
        raise FileNotFoundError(f"{source}: no such file; expected an original SD v1 file, a folder, or a hub id")
    kind = "folder" if path.is_dir() else "single file" if path.is_file() else "hub id"
    if unknown := options.keys() - {name for names in APPLY.values() for name in names}:
        raise TypeError(f"from_pretrained() got an unexpected keyword argument {min(unknown)!r}")
    if wrong := [name for name, value in options.items() if value and name not in APPLY[kind]]:
        raise ValueError(f"{wrong[0]} does not apply to {source}, which is a {kind}; leave it out")
    if kind == "single file":
        parts = load_single_file(path, dtype, device, bool(options.get("ema")))
        beside = path.parent / "tokenizer"
        folder = options.get("tokenizer") or (beside if beside.is_dir() else hub.download_tokenizer())
        other = {"tokenizer": load_tokenizer(Path(folder)), "scheduler": NoiseScheduler(SCHEDULER_CONFIG)}
        return dict(zip(("unet", "vae", "text_encoder"), parts)) | other | {"defaults": ModelDefaults()}
    variant = options.get("variant")
    return load_folder(hub.folder_of(source, options.get("revision"), variant), device, dtype, variant)
