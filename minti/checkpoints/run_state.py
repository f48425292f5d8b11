"""The state of a training run in files, so that an interrupted run can go on: tensors, and facts as JSON.

One safetensors file holds both, so that it is whole or not there: the facts stand in its metadata, with a digest of
all, so that not a bit of it changes unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from minti.config import fits
from minti.files import one_line, replacing, shown

NAME = re.compile(r"step-(\d+)\.safetensors")


@dataclass(frozen=True)
class RunState:
    """Everything of a run that changes from step to step, and what tells that it is the same run.

    Attributes:
        step: how many steps have been taken.
        tensors: small ones, some tens of kilobytes in all.
        facts: what JSON can hold.
    """

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def write_run_state(folder: str | os.PathLike[str], state: RunState, keep: int = 3) -> Path:
    """Writes `step-N.safetensors` into a folder, atomically, and removes all but the newest few.

    Raises:
        OSError: it cannot be written; older ones are as they were.
    """
    path = Path(folder) / f"step-{state.step:06}.safetensors"
    with replacing(path) as temporary:
        # clone: safetensors writes no views
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in state.tensors.items()}
        facts = json.dumps({"step": state.step, **state.facts})
        save_file(tensors, temporary, {"facts": facts, "digest": digest(facts, tensors)})
    for old in _newest_first(path.parent)[keep:]:
        old.unlink(missing_ok=True)
    return path


def read_run_state(folder: str | os.PathLike[str]) -> RunState | None:
    """The newest whole state of a folder, for `textual_inversion(..., checkpoint=...)`; None where there is none.

    Warns of newer ones that are damaged.

    Raises:
        ValueError: there are files, but all are damaged.
    """
    paths = _newest_first(Path(folder))
    for path in paths:
        try:
            return _read(path)
        except (SafetensorError, OSError, ValueError, RecursionError) as error:
            warnings.warn(f"{path} is damaged ({one_line(error)}); looking for an older one", stacklevel=2)
    if paths:
        raise ValueError(f"{folder}: every checkpoint in it is damaged; remove them, and begin anew")
    return None


def digest(facts: str, tensors: dict[str, Tensor]) -> str:
    """Of everything in the file."""
    return hashlib.sha256(facts.encode() + save(tensors)).hexdigest()


def _read(path: Path) -> RunState:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if metadata.get("digest") != digest(metadata.get("facts", ""), tensors):
        raise ValueError("it is not as it was written")
    facts = json.loads(metadata["facts"])
    return RunState(facts.pop("step"), tensors, facts)


def check_alike(state: RunState, own: RunState, rows: str) -> None:
    """Refuses a state that is built otherwise than a run's own, or holds what is not finite.

    Args:
        rows: the tensor which those of the optimizer, unknown before its first step, are like.

    Raises:
        ValueError, KeyError: naming what is odd or missing.
    """
    for name in own.tensors.keys() | state.tensors:
        tensor, like = state.tensors[name], own.tensors.get(name, own.tensors[rows])
        count = name not in own.tensors and tensor.ndim == 0  # how many steps the optimizer has taken
        if not count and (tensor.shape, tensor.dtype) != (like.shape, like.dtype):
            raise ValueError(f"{name} is {tuple(tensor.shape)} {tensor.dtype}")
        if not tensor.isfinite().all():
            raise ValueError(f"{name} is not finite")
    for name in own.facts.keys() - {"identity"}:
        if not _alike(state.facts[name], own.facts[name]):
            raise ValueError(f"{name} is {shown(state.facts[name])}")


def _alike(value: Any, own: Any) -> bool:
    """Whether a value from JSON has the keys and types of another."""
    if isinstance(own, dict):
        return (
            isinstance(value, dict) and value.keys() == own.keys() and all(_alike(value[key], own[key]) for key in own)
        )
    if isinstance(own, list):
        return isinstance(value, list) and len(value) > 0 and all(_alike(item, own[0]) for item in value)
    return fits(value, type(own)) and (not isinstance(own, int) or 0 <= value <= 10**9)


def _newest_first(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    numbers = {path: int(match[1]) for path in folder.iterdir() if (match := NAME.fullmatch(path.name))}
    return sorted(numbers, key=numbers.__getitem__, reverse=True)
