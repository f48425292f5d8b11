"""Files that are weights: reading a model folder, reading and writing learned embeddings.

Only safetensors is read: unlike a pickle it cannot run code. Networks are built without storage (on torch's "meta"
device) and the file's tensors are handed to them, so that no weight is initialised only to be overwritten.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from minti.scheduler import NoiseScheduler, SchedulerConfig
from minti.unet import UNet, UNetConfig
from minti.vae import VAE, VAEConfig

M = TypeVar("M", bound=nn.Module)

# --- reading files ----------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """A config file.

    Raises:
        FileNotFoundError, ValueError: naming the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected a model folder in the layout of SD v1.4")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, mapped from the disk, on the CPU.

    Raises:
        FileNotFoundError, ValueError: naming the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; minti reads weights in the safetensors format only")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); fetch or write it again") from None


# --- names in older files ---------------------------------------------------------------------------------------------


def rename_vae_key(key: str) -> str:
    """The VAE of the SD v1.4 release calls the parts of its attention by their names of 2022."""
    new = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    return re.sub(r"(?<=attentions\.0\.)(query|key|value|proj_attn)(?=\.)", lambda match: new[match[0]], key)


def rename_text_key(key: str) -> str | None:
    """transformers 5 dropped the level `text_model.`; `position_ids` (0 .. 76) is no weight."""
    return None if key.endswith("position_ids") else key.removeprefix("text_model.")


# --- building the parts -----------------------------------------------------------------------------------------------


def load_network(
    build: Callable[[], M], path: Path, dtype: torch.dtype, device: torch.device, rename: Callable[[str], str | None]
) -> M:
    """Builds a network without storage and hands it the tensors of a file.

    Args:
        rename: from the file's key to the module's; None drops the tensor.

    Raises:
        ValueError: a tensor is missing, unexpected or misshapen; names the file and the key.
    """
    with torch.device("meta"):
        network = build()
    tensors = {rename(key): tensor for key, tensor in read_tensors(path).items()}
    tensors.pop(None, None)

    expected = network.state_dict()
    for problem, keys in (
        ("lacks", expected.keys() - tensors.keys()),
        ("has an unexpected", tensors.keys() - expected.keys()),
    ):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ValueError(f"{path} {problem} tensor {min(keys)}{more}; it does not fit the config.json beside it")
    for key, tensor in tensors.items():
        if tensor.shape != expected[key].shape:
            raise ValueError(
                f"{path}: {key} has shape {tuple(tensor.shape)}; by the config.json beside it, "
                f"{tuple(expected[key].shape)} was expected"
            )
    network.load_state_dict({key: tensor.to(device, dtype) for key, tensor in tensors.items()}, assign=True)
    return network.eval().requires_grad_(False)


def load_unet(folder: Path, dtype: torch.dtype, device: torch.device) -> UNet:
    """The UNet of a model folder's `unet/`."""
    path = folder / "config.json"
    config = UNetConfig.from_dict(read_json(path), str(path))
    weights = folder / "diffusion_pytorch_model.safetensors"
    return load_network(lambda: UNet(config), weights, dtype, device, rename=lambda key: key)


def load_vae(folder: Path, dtype: torch.dtype, device: torch.device) -> VAE:
    """The VAE of a model folder's `vae/`."""
    path = folder / "config.json"
    config = VAEConfig.from_dict(read_json(path), str(path))
    weights = folder / "diffusion_pytorch_model.safetensors"
    return load_network(lambda: VAE(config), weights, dtype, device, rename_vae_key)


def load_text_encoder(folder: Path, dtype: torch.dtype, device: torch.device) -> CLIPTextModel:
    """Hugging Face's text model with the weights of a model folder's `text_encoder/`."""
    config = CLIPTextConfig(**read_json(folder / "config.json"))
    weights = folder / "model.safetensors"
    model = load_network(lambda: CLIPTextModel(config), weights, dtype, device, rename_text_key)
    # A buffer that is not saved is still without storage.
    positions = torch.arange(config.max_position_embeddings, device=device)
    model.embeddings.register_buffer("position_ids", positions.expand((1, -1)), persistent=False)
    return model


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer of a model folder's `tokenizer/`: vocab.json and merges.txt, or tokenizer.json of newer tools."""
    if not (folder / "tokenizer.json").is_file():
        for name in ("vocab.json", "merges.txt"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name} is missing; expected a CLIP tokenizer's vocab and merges")
    return CLIPTokenizer.from_pretrained(folder)


def load_scheduler(folder: Path) -> NoiseScheduler:
    """The noise schedule of a model folder's `scheduler/`."""
    path = folder / "scheduler_config.json"
    return NoiseScheduler(SchedulerConfig.from_dict(read_json(path), str(path)))


# --- learned embeddings -----------------------------------------------------------------------------------------------


def write_embeddings(path: Path, embeddings: dict[str, Tensor]) -> None:
    """Writes {placeholder: (num_vectors, d)} as diffusers' `load_textual_inversion` reads it; atomic.

    A file cut short by a full disk or a power failure never takes the place of a good one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    try:
        # clone: safetensors writes no views
        save_file({token: rows.detach().cpu().float().clone() for token, rows in embeddings.items()}, temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def read_embeddings(path: Path) -> dict[str, Tensor]:
    """Reads what `write_embeddings` or diffusers wrote: {placeholder: (num_vectors, d)}."""
    return {token: rows[None] if rows.ndim == 1 else rows for token, rows in read_tensors(Path(path)).items()}
