"""Random noise, and how families plug into the core by name."""

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None


def randn(shape: Sequence[int], generator: Generators, device: Any, dtype: torch.dtype) -> Tensor:
    """Standard normal noise, drawn on the generator's device; of a list, generator i draws image i."""
    if isinstance(generator, Sequence):
        if len(generator) != shape[0]:
            raise ValueError(f"{len(generator)} generators for a batch of {shape[0]}; give one, or one for each image")
        return torch.cat([randn((1, *shape[1:]), one, device, dtype) for one in generator])
    source = device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=source, dtype=dtype).to(device)


def plugin(name: str, default: Any = None) -> Any:
    """What "module:name" names in a family (a folder of minti), imported on first use; without it, the `default`."""
    module, attribute = name.split(":")
    missing = default is not None and importlib.util.find_spec(".".join(module.split(".")[:2])) is None
    return default if missing else getattr(importlib.import_module(module), attribute)


def check(name: str, *args: Any) -> None:
    """Calls a check of a family, which raises an error in one clear line; the core runs without it."""
    plugin(f"minti.{name}", lambda *args: None)(*args)
