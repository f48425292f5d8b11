"""A model folder in the layout of SD v1.4: a config and weights for every part, whole or in shards."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from minti.checkpoints.configs import load_config, read_json
from minti.checkpoints.text_encoder import TextConfig, rename_text_keys
from minti.checkpoints.tokenizer import load_tokenizer
from minti.checkpoints.weights import build, fill, read_tensors
from minti.defaults import FILE, ModelDefaults
from minti.diffusion.scheduler import NoiseScheduler, SchedulerConfig
from minti.machine.messages import quoted
from minti.networks.unet import UNet, UNetConfig
from minti.networks.vae import VAE, VAEConfig

Parts = tuple[UNet, VAE, CLIPTextModel, CLIPTokenizer, NoiseScheduler, ModelDefaults]
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
NETWORK = "diffusion_pytorch_model"


def load_folder(folder: Path, dtype: torch.dtype | None, device: torch.device, variant: str | None = None) -> Parts:
    """All that a model folder holds; dtype None keeps the files', variant "fp16" takes their `.fp16.safetensors`.

    Raises FileNotFoundError, ValueError: a part or file is missing, damaged, or of another architecture; names the
    file, and the key or tensor.
    """
    if missing := [part for part in PARTS if not (folder / part).is_dir()]:
        raise FileNotFoundError(f"{folder} has no {', '.join(missing)}; a model folder holds {', '.join(PARTS)}")

    def network(part: str, kind: type, make: Callable[[Any], nn.Module], stem: str, rename: Callable) -> Any:
        origin = folder / part / "config.json"
        config = load_config(kind, origin)
        path, tensors = read_part(folder / part, stem, dtype, variant)
        built = build(lambda: make(config), origin)
        return fill(built, rename(tensors, built), path, dtype, device)

    return (
        network("unet", UNetConfig, UNet, NETWORK, lambda tensors, _: tensors),
        network("vae", VAEConfig, VAE, NETWORK, rename_vae_keys),
        network("text_encoder", TextConfig, lambda c: CLIPTextModel(c.hugging_face()), "model", rename_text_keys),
        load_tokenizer(folder / "tokenizer"),
        NoiseScheduler(load_config(SchedulerConfig, folder / "scheduler" / "scheduler_config.json")),
        load_defaults(folder),
    )


def load_defaults(folder: Path) -> ModelDefaults:
    """What suits the model of a folder; what suits SD v1 where it does not say."""
    path = folder / FILE
    return load_config(ModelDefaults, path) if path.is_file() else ModelDefaults()


def read_part(
    folder: Path, stem: str, dtype: torch.dtype | None, variant: str | None
) -> tuple[Path, dict[str, Tensor]]:
    """The file that an error message should name, and the weights of one part, from it or from the shards it lists.
    Raises FileNotFoundError, ValueError: a file is missing or damaged; names it."""
    suffix = f".{variant}" if variant else ""
    path, index = folder / f"{stem}{suffix}.safetensors", folder / f"{stem}.safetensors.index{suffix}.json"
    if path.is_file() or not index.is_file():
        others = sorted(file.name for file in folder.glob(f"{stem}*.safetensors"))
        if others and not path.is_file():
            raise FileNotFoundError(f"{path} is missing; the folder has {', '.join(others)} (variant={variant!r})")
        return path, read_tensors(path, dtype)
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{index} has no weight_map; expected the file of every tensor by its name")
    shards = set(places.values())
    if wrong := sorted(name for name in shards if Path(name).name != name or not name.isprintable()):
        raise ValueError(f"{index} lists {quoted(wrong[0])}, which is not a file beside it")
    return index, {key: tensor for name in sorted(shards) for key, tensor in read_tensors(folder / name, dtype).items()}


def rename_vae_keys(tensors: dict[str, Tensor], vae: VAE) -> dict[str, Tensor]:
    """To the VAE's own names: the SD v1.4 release calls the parts of its attention by their names of 2022."""
    new = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    old = r"(?<=attentions\.0\.)(query|key|value|proj_attn)(?=\.)"
    return {re.sub(old, lambda match: new[match[0]], key): tensor for key, tensor in tensors.items()}
