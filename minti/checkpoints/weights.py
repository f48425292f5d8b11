"""Files that are weights, and networks that are filled with them.

Only safetensors is read, and pickles by torch's restricted reader: neither can run code. Networks are built without
storage (on torch's "meta" device) and the file's tensors, mapped from the disk, are handed to them, so that no weight
is initialised only to be overwritten, none is kept twice, and none is read before it is used.
"""

import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from minti.machine.messages import one_line, shortened

M = TypeVar("M", bound=nn.Module)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def read_tensors(path: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU: mapped from the disk, or converted to `dtype` where it is another.
    Raises FileNotFoundError, ValueError: naming the file."""
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
        damage = f"is not a whole safetensors file ({one_line(error)})"
        raise ValueError(f"{path} {damage}; fetch or write it again") from None
    except NotImplementedError as error:  # torch knows the type, but cannot compute with it
        raise ValueError(f"{path} holds numbers that cannot be converted to {dtype} ({one_line(error)})") from None
    except OSError as error:
        raise OSError(f"{path} cannot be read: {one_line(error)}") from None


class ModelCheckpoint:
    """Stands for the class of the training framework that sd-v1-4.ckpt mentions; it does nothing."""

    __module__ = "pytorch_lightning.callbacks.model_checkpoint"  # the name by which the file asks for it


def read_pickle(path: Path) -> Any:
    """The content of a `.ckpt`, `.pt` or `.bin` file: tensors and plain containers; nothing in it is executed.
    Raises ValueError: the file is damaged, or holds anything else; names the file."""
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


def build(make: Callable[[], M], origin: Path) -> M:
    """Builds a network without storage for its parameters.
    Raises ValueError: the config's numbers do not go together; names the file, `origin`."""
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
    """Hands a network that was built without storage its tensors, by its own keys, and freezes it; dtype None keeps the
    file's. Raises ValueError: a tensor is missing, unexpected or misshapen; names the file, `path`, and the key as
    `called` there."""
    expected = network.state_dict()
    missing, unexpected = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    for problem, keys in (("lacks", missing), ("has an unexpected", unexpected)):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            name = shortened(called(min(keys)))
            raise ValueError(f"{path} {problem} tensor {name}{more}; it does not fit the model's config")
    for key, tensor in tensors.items():
        if tensor.shape != expected[key].shape:
            wanted = f"by the model's config, {tuple(expected[key].shape)} was expected"
            raise ValueError(f"{path}: {called(key)} has shape {tuple(tensor.shape)}; {wanted}")
        if tensor.layout != torch.strided or tensor.dtype not in DTYPES:
            wanted = f"expected one of {', '.join(map(str, DTYPES))}"
            raise ValueError(f"{path}: {called(key)} is of {tensor.dtype}; {wanted}")
    network.load_state_dict({k: tensor.to(device, dtype or tensor.dtype) for k, tensor in tensors.items()}, assign=True)
    for module in network.modules():
        if hasattr(module, "position_ids"):  # 0, 1, ... of a text encoder: a buffer that no file holds
            module.position_ids = torch.arange(module.position_ids.shape[-1], device=device)[None]
    return network.eval().requires_grad_(False)
