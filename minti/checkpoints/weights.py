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

from minti.checkpoints.finite import check_file
from minti.defaults import FILE as DEFAULTS
from minti.defaults import ModelDefaults
from minti.diffusion.scheduler import NoiseScheduler, SchedulerConfig
from minti.machine.configs import Config
from minti.machine.messages import one_line, quoted, shortened, shown
from minti.networks.unet import UNet, UNetConfig
from minti.networks.vae import VAE, VAEConfig

M = TypeVar("M", bound=nn.Module)
C = TypeVar("C", bound=Config)
NETWORK = "diffusion_pytorch_model"
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

# --- reading files ----------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """A config file.

    Raises:
        FileNotFoundError, ValueError: naming the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected a model folder in the layout of SD v1.4")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a config: expected a JSON object, found {shown(content)}")
    return content


def load_config(kind: type[C], path: Path) -> C:
    """A config file as the dataclass of its kind.

    Raises:
        FileNotFoundError, ValueError: naming the file.
    """
    return kind.from_dict(read_json(path), str(path))


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
        raise ValueError(
            f"{path} is not a whole safetensors file ({one_line(error)}); fetch or write it again"
        ) from None
    except NotImplementedError as error:  # torch knows the type, but cannot compute with it
        raise ValueError(f"{path} holds numbers that cannot be converted to {dtype} ({one_line(error)})") from None
    except OSError as error:
        raise OSError(f"{path} cannot be read: {one_line(error)}") from None


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
        asks = f"asks to run {shortened(what[1])}" if what else "is no file of tensors"
        raise ValueError(f"{path} {asks}, which minti refuses; use a safetensors file instead") from None
    except Exception as error:  # torch's reader fails in all manners: struct.error, IndexError, AttributeError ...
        raise ValueError(f"{path} is damaged ({one_line(error)}); fetch it again") from None
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

    Raises:
        FileNotFoundError, ValueError: a file is missing, damaged, or holds numbers that are not finite; names it.
    """
    suffix = f".{variant}" if variant else ""
    path, index = folder / f"{stem}{suffix}.safetensors", folder / f"{stem}.safetensors.index{suffix}.json"
    if path.is_file() or not index.is_file():
        others = sorted(file.name for file in folder.glob(f"{stem}*.safetensors"))
        if others and not path.is_file():
            raise FileNotFoundError(f"{path} is missing; the folder has {', '.join(others)} (variant={variant!r})")
        return path, _read_weights(path, dtype)
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{index} has no weight_map; expected the file of every tensor by its name")
    shards = set(places.values())
    if wrong := sorted(name for name in shards if Path(name).name != name or not name.isprintable()):
        raise ValueError(f"{index} lists {quoted(wrong[0])}, which is not a file beside it")
    return index, {
        key: tensor for name in sorted(shards) for key, tensor in _read_weights(folder / name, dtype).items()
    }


def _read_weights(path: Path, dtype: torch.dtype | None) -> dict[str, Tensor]:
    tensors = read_tensors(path, dtype)
    check_file(path)
    return tensors


# --- names in older files ---------------------------------------------------------------------------------------------


def rename_vae_key(key: str) -> str:
    """The VAE of the SD v1.4 release calls the parts of its attention by their names of 2022."""
    new = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    return re.sub(r"(?<=attentions\.0\.)(query|key|value|proj_attn)(?=\.)", lambda match: new[match[0]], key)


# --- building the parts -----------------------------------------------------------------------------------------------


def build(make: Callable[[], M], origin: Path) -> M:
    """Builds a network without storage for its parameters.

    Args:
        origin: which file to name in an error message.

    Raises:
        ValueError: the config's numbers do not go together.
    """
    try:
        with torch.device("meta"):
            return make()
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"{origin}: its numbers do not go together ({one_line(error)})") from None


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
            name = shortened(called(min(keys)))
            raise ValueError(f"{path} {problem} tensor {name}{more}; it does not fit the model's config")
    for key, tensor in tensors.items():
        if tensor.shape != expected[key].shape:
            raise ValueError(
                f"{path}: {called(key)} has shape {tuple(tensor.shape)}; by the model's config, "
                f"{tuple(expected[key].shape)} was expected"
            )
        if tensor.layout != torch.strided or tensor.dtype not in DTYPES:
            raise ValueError(
                f"{path}: {called(key)} is of {tensor.dtype}; expected one of {', '.join(map(str, DTYPES))}"
            )
    network.load_state_dict({k: tensor.to(device, dtype or tensor.dtype) for k, tensor in tensors.items()}, assign=True)
    return network.eval().requires_grad_(False)


def load_unet(folder: Path, dtype: torch.dtype | None, device: torch.device, variant: str | None = None) -> UNet:
    """The UNet of a model folder's `unet/`."""
    config = load_config(UNetConfig, folder / "config.json")
    path, tensors = read_part(folder, NETWORK, dtype, variant)
    return fill(build(lambda: UNet(config), folder / "config.json"), tensors, path, dtype, device)


def load_vae(folder: Path, dtype: torch.dtype | None, device: torch.device, variant: str | None = None) -> VAE:
    """The VAE of a model folder's `vae/`."""
    config = load_config(VAEConfig, folder / "config.json")
    path, tensors = read_part(folder, NETWORK, dtype, variant)
    renamed = {rename_vae_key(key): tensor for key, tensor in tensors.items()}
    return fill(build(lambda: VAE(config), folder / "config.json"), renamed, path, dtype, device)


def load_scheduler(folder: Path) -> NoiseScheduler:
    """The noise schedule of a model folder's `scheduler/`."""
    return NoiseScheduler(load_config(SchedulerConfig, folder / "scheduler_config.json"))


def load_defaults(folder: Path) -> ModelDefaults:
    """What suits the model of a folder; what suits SD v1 where it does not say."""
    path = folder / DEFAULTS
    return load_config(ModelDefaults, path) if path.is_file() else ModelDefaults()
