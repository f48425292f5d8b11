"""A model folder in the layout of SD v1.4 (a config and safetensors for every part) to its networks, which are built
on torch's "meta" device and handed the file's tensors, mapped from the disk. No code of a file is run."""

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from minti.configs import ModelDefaults, TextConfig, read_config
from minti.scheduler import NoiseScheduler, SchedulerConfig
from minti.unet import UNet, UNetConfig
from minti.utils import check, plugin
from minti.vae import VAE, VAEConfig

NETWORK = "diffusion_pytorch_model"
DEFAULTS = "defaults.json"


def load_network(
    make: Callable[[], nn.Module],
    path: Path,
    device: Any = "cpu",
    dtype: torch.dtype | None = None,
    rename: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]] = lambda tensors, network: tensors,
    *,
    tensors: dict[str, Tensor] | None = None,
    name_in_file: Callable[[str], str] = str,
) -> Any:
    """A frozen network with the weights of a file, or with `tensors` that were read from it.
    dtype: None keeps the file's. rename: the file's tensors by the network's names. name_in_file: for messages.
    Raises FileNotFoundError, ValueError: missing, damaged, or of another architecture; names file and tensor."""
    if tensors is None:
        tensors = plugin("minti.formats.tensors:read_tensors", lambda path, dtype: load_file(path))(path, dtype)
    try:
        with torch.device("meta"):
            network = make()
    except (ValueError, RuntimeError, ArithmeticError, LookupError, TypeError) as error:
        raise ValueError(f"{path.parent}: the config's numbers do not go together ({error})") from None
    tensors = rename(tensors, network)
    check("formats.strict:check_tensors", path, tensors, network.state_dict(), name_in_file)
    network.load_state_dict({k: tensor.to(device, dtype or tensor.dtype) for k, tensor in tensors.items()}, assign=True)
    for module in network.modules():
        if hasattr(module, "position_ids"):  # of the text encoder: 0, 1, ...; a buffer that no file holds
            module.position_ids = torch.arange(module.position_ids.shape[-1], device=device)[None]
    return network.eval().requires_grad_(False)


def vae_names(tensors: dict[str, Tensor], vae: nn.Module) -> dict[str, Tensor]:
    """To the VAE's own names: the SD v1.4 release calls the layers of its attention by their names of 2022."""
    new = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    old = r"(?<=attentions\.0\.)(query|key|value|proj_attn)(?=\.)"
    return {re.sub(old, lambda match: new[match[0]], key): tensor for key, tensor in tensors.items()}


def text_names(tensors: dict[str, Tensor], text_encoder: nn.Module) -> dict[str, Tensor]:
    """To the text encoder's own names, which transformers gives with or without a level `text_model.`."""
    own = {key.removeprefix("text_model."): key for key in text_encoder.state_dict()}
    weights = {key: tensor for key, tensor in tensors.items() if not key.endswith("position_ids")}
    return {own.get(key.removeprefix("text_model."), key): tensor for key, tensor in weights.items()}


def make_text_encoder(config: TextConfig) -> CLIPTextModel:
    """Hugging Face's text encoder of the keys that minti knows; its own loader would obey whatever a config says."""
    return CLIPTextModel(CLIPTextConfig(**asdict(config)))


def load_folder(folder: Path, device: Any, dtype: torch.dtype | None, variant: str | None = None) -> dict[str, Any]:
    """The parts of a model folder by their names. Raises OSError, ValueError: names the file, the key or the tensor."""
    check("formats.strict:has_parts", folder)

    def network(part: str, kind: type, make: Callable[[Any], nn.Module], stem: str, *rename: Callable) -> Any:
        config = read_config(kind, folder / part / "config.json")
        path, tensors = folder / part / f"{stem}.safetensors", None
        if variant or not path.is_file():  # in shards, or in half precision
            path, tensors = plugin("minti.formats.shards:read_part")(folder / part, stem, dtype, variant)
        return load_network(lambda: make(config), path, device, dtype, *rename, tensors=tensors)

    return {
        "unet": network("unet", UNetConfig, UNet, NETWORK),
        "vae": network("vae", VAEConfig, VAE, NETWORK, vae_names),
        "text_encoder": network("text_encoder", TextConfig, make_text_encoder, "model", text_names),
        "tokenizer": plugin("minti.formats.strict:load_tokenizer", CLIPTokenizer.from_pretrained)(folder / "tokenizer"),
        "scheduler": NoiseScheduler(read_config(SchedulerConfig, folder / "scheduler" / "scheduler_config.json")),
        "defaults": read_config(ModelDefaults, folder / DEFAULTS) if (folder / DEFAULTS).is_file() else ModelDefaults(),
    }
