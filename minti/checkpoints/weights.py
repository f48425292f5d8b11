"""Files that are weights: reading a model folder, whole or in shards, in full or half precision.

Only safetensors is read, and pickles by torch's restricted reader: neither can run code. Networks are built without
storage (on torch's "meta" device) and the file's tensors, mapped from the disk, are handed to them, so that no weight
is initialised only to be overwritten and none is kept twice.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from minti.defaults import FILE as DEFAULTS
from minti.defaults import ModelDefaults
from minti.diffusion.scheduler import NoiseScheduler, SchedulerConfig
from minti.networks.unet import UNet, UNetConfig
from minti.networks.vae import VAE, VAEConfig

M = TypeVar("M", bound=nn.Module)
NETWORK = "diffusion_pytorch_model"
# What a text encoder's config may settle. Whatever else it says stays unread: transformers would, for one, fetch code
# from the hub if `attn_implementation` named a repository.
TEXT_KEYS = {
    *("vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads"),
    *("max_position_embeddings", "hidden_act", "layer_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id"),
}

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


def read_tensors(path: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU: mapped from the disk, or converted to `dtype` where it is another.

    Raises:
        FileNotFoundError, ValueError: naming the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; minti reads weights in the safetensors format only")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        for key in [key for key, tensor in tensors.items() if dtype not in (None, tensor.dtype)]:
            with safe_open(path, framework="pt") as file:  # what was read of a mapped file is held until it is closed
                tensors[key] = file.get_tensor(key).to(dtype)
        return tensors
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); fetch or write it again") from None


class ModelCheckpoint:
    """Stands for the class of the training framework that sd-v1-4.ckpt mentions; it does nothing."""

    __module__ = "pytorch_lightning.callbacks.model_checkpoint"  # the name by which the file asks for it


def read_pickle(path: Path) -> Any:
    """The content of a `.ckpt`, `.pt` or `.bin` file: tensors and plain containers; nothing in it is executed.

    Raises:
        ValueError: the file is damaged, or holds anything else; names the file.
    """
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([ModelCheckpoint])
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        what = re.search(r"(?:GLOBAL|global) (\S+)", str(error))
        asks = f"asks to run {what[1]}" if what else "is no file of tensors"
        raise ValueError(f"{path} {asks}, which minti refuses; use a safetensors file instead") from None
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({str(error).splitlines()[0]}); fetch it again") from None
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)


def read_part(
    folder: Path, stem: str, dtype: torch.dtype | None, variant: str | None
) -> tuple[Path, dict[str, Tensor]]:
    """The weights of a model folder's part, from one file or from the shards that an index lists.

    Args:
        variant: such as "fp16", for `stem.fp16.safetensors`.

    Returns:
        The file that an error message should name, and all tensors.
    """
    suffix = f".{variant}" if variant else ""
    path, index = folder / f"{stem}{suffix}.safetensors", folder / f"{stem}.safetensors.index{suffix}.json"
    if path.is_file() or not index.is_file():
        others = sorted(file.name for file in folder.glob(f"{stem}*.safetensors"))
        if others and not path.is_file():
            raise FileNotFoundError(f"{path} is missing; the folder has {', '.join(others)} (variant={variant!r})")
        return path, read_tensors(path, dtype)
    shards = set(read_json(index).get("weight_map", {}).values())
    if wrong := [name for name in shards if Path(name).name != name]:
        raise ValueError(f"{index} lists {wrong[0]!r}, which is not a file beside it")
    return index, {key: tensor for name in sorted(shards) for key, tensor in read_tensors(folder / name, dtype).items()}


# --- names in older files ---------------------------------------------------------------------------------------------


def rename_vae_key(key: str) -> str:
    """The VAE of the SD v1.4 release calls the parts of its attention by their names of 2022."""
    new = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    return re.sub(r"(?<=attentions\.0\.)(query|key|value|proj_attn)(?=\.)", lambda match: new[match[0]], key)


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


# --- building the parts -----------------------------------------------------------------------------------------------


def build(make: Callable[[], M]) -> M:
    """Builds a network without storage for its parameters."""
    with torch.device("meta"):
        return make()


def fill(
    network: M,
    tensors: dict[str, Tensor],
    path: Path,
    dtype: torch.dtype | None,
    device: torch.device,
    called: Callable[[str], str] = lambda key: key,
) -> M:
    """Hands a network that was built without storage its tensors, and freezes it.

    Args:
        tensors: by the network's own keys.
        path: which file to name in an error message.
        dtype: None keeps the file's.
        called: what the file calls the tensor of a key.

    Raises:
        ValueError: a tensor is missing, unexpected or misshapen; names the file and the key.
    """
    expected = network.state_dict()
    missing, unexpected = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    for problem, keys in (("lacks", missing), ("has an unexpected", unexpected)):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ValueError(f"{path} {problem} tensor {called(min(keys))}{more}; it does not fit the model's config")
    for key, tensor in tensors.items():
        if tensor.shape != expected[key].shape:
            raise ValueError(
                f"{path}: {called(key)} has shape {tuple(tensor.shape)}; by the model's config, "
                f"{tuple(expected[key].shape)} was expected"
            )
    network.load_state_dict({k: tensor.to(device, dtype or tensor.dtype) for k, tensor in tensors.items()}, assign=True)
    return network.eval().requires_grad_(False)


def fill_text_encoder(model: CLIPTextModel, *args: Any) -> CLIPTextModel:
    """As `fill`; and gives storage to a buffer that no file holds."""
    fill(model, *args)
    positions = torch.arange(model.config.max_position_embeddings, device=model.device)
    embeddings = next(module for module in model.modules() if hasattr(module, "position_ids"))
    embeddings.register_buffer("position_ids", positions.expand((1, -1)), persistent=False)
    return model


def load_unet(folder: Path, dtype: torch.dtype | None, device: torch.device, variant: str | None = None) -> UNet:
    """The UNet of a model folder's `unet/`."""
    config = UNetConfig.from_dict(read_json(folder / "config.json"), str(folder / "config.json"))
    path, tensors = read_part(folder, NETWORK, dtype, variant)
    return fill(build(lambda: UNet(config)), tensors, path, dtype, device)


def load_vae(folder: Path, dtype: torch.dtype | None, device: torch.device, variant: str | None = None) -> VAE:
    """The VAE of a model folder's `vae/`."""
    config = VAEConfig.from_dict(read_json(folder / "config.json"), str(folder / "config.json"))
    path, tensors = read_part(folder, NETWORK, dtype, variant)
    renamed = {rename_vae_key(key): tensor for key, tensor in tensors.items()}
    return fill(build(lambda: VAE(config)), renamed, path, dtype, device)


def load_text_encoder(
    folder: Path, dtype: torch.dtype | None, device: torch.device, variant: str | None = None
) -> CLIPTextModel:
    """Hugging Face's text model with the weights of a model folder's `text_encoder/`."""
    content = read_json(folder / "config.json")
    config = CLIPTextConfig(**{key: content[key] for key in content.keys() & TEXT_KEYS})
    path, tensors = read_part(folder, "model", dtype, variant)
    model = build(lambda: CLIPTextModel(config))
    return fill_text_encoder(model, rename_text_keys(tensors, model), path, dtype, device)


def load_scheduler(folder: Path) -> NoiseScheduler:
    """The noise schedule of a model folder's `scheduler/`."""
    path = folder / "scheduler_config.json"
    return NoiseScheduler(SchedulerConfig.from_dict(read_json(path), str(path)))


def load_defaults(folder: Path) -> ModelDefaults:
    """What suits the model of a folder; what suits SD v1 where it does not say."""
    path = folder / DEFAULTS
    return ModelDefaults.from_dict(read_json(path), str(path)) if path.is_file() else ModelDefaults()
