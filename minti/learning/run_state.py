"""The state of a training run in files, so that an interrupted run can go on: tensors, and facts as JSON.

One safetensors file holds both, so that it is whole or not there: the facts stand in its metadata, and beside them a
checksum of all, since a disk may flip a bit of a number and the format would not notice.
"""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minti.machine.configs import fits
from minti.machine.files import replacing
from minti.machine.messages import shortened, shown

FORMAT = 2
DAMAGE = (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
NAME = re.compile(r"step-(\d+)\.safetensors")


@dataclass(frozen=True)
class RunState:
    """All of a run that changes from step to step, and in `facts["identity"]` what tells that it is the same run."""

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def check(self, shapes: Mapping[str, torch.Size]) -> None:
        """Raises KeyError, RuntimeError: a tensor of these names is not there, or not of that shape and finite."""
        for name, shape in shapes.items():
            if self.tensors[name].shape != shape or not self.tensors[name].isfinite().all():
                raise RuntimeError(f"{name} is not {tuple(shape)} finite numbers")

    def check_facts(self, own: dict[str, Any]) -> None:
        """Raises ValueError: the facts are not those of the run that is to go on; names every difference.
        Raises KeyError, RuntimeError: they have other keys or types; names the first."""
        was, now = self.facts["identity"], own["identity"]
        differ = [key for key in sorted(was.keys() | now) if was.get(key) != now.get(key)]
        if differ:
            said = [[key, *(shortened(str(facts.get(key))) for facts in (was, now))] for key in differ[:20]]
            changes = "; ".join(f"{key} was {before} and is {after}" for key, before, after in said)
            raise ValueError(f"the checkpoint is of another run: {changes}. Go on with the same, or begin anew")
        for name, value in own.items():
            if name != "identity" and not _alike(self.facts[name], value):
                raise RuntimeError(f"{name} is {shown(self.facts[name])}")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A context in which something that is missing, or of another kind, becomes a ValueError that says so."""
        try:
            yield
        except (LookupError, TypeError, AttributeError, RuntimeError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(f"the checkpoint of step {self.step} is no whole state of a run: {what}") from None


def write_run_state(folder: str | os.PathLike[str], state: RunState, keep: int = 3) -> Path:
    """Writes `step-N.safetensors` into a folder, atomically, and removes all but the newest few.
    Raises OSError: it cannot be written; older ones are as they were."""
    path = Path(folder) / f"step-{state.step:06}.safetensors"
    with replacing(path) as temporary:  # clone: safetensors writes no views
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in state.tensors.items()}
        facts = json.dumps({"step": state.step, "format": FORMAT, **state.facts})
        save_file(tensors, temporary, {"facts": facts, "sha256": checksum(tensors, facts)})
    for old in _newest_first(path.parent)[keep:]:
        old.unlink(missing_ok=True)
    return path


def read_run_state(folder: str | os.PathLike[str]) -> RunState | None:
    """The newest whole state of a folder, for `textual_inversion(..., checkpoint=...)`; None where there is none. Warns
    of newer ones that are damaged. Raises ValueError: all are, or it is of another version of minti."""
    paths = _newest_first(Path(folder))
    for path in paths:
        try:
            state = _read(path)
        except DAMAGE as error:
            warnings.warn(f"{path} is damaged ({error}); looking for an older one", stacklevel=2)
            continue
        if state.facts.get("format") != FORMAT:
            raise ValueError(f"{path} was written by another version of minti; go on with that one, or begin anew")
        return state
    if paths:
        raise ValueError(f"{folder}: every checkpoint in it is damaged; remove them, and begin anew")
    return None


def checksum(tensors: Mapping[str, Tensor], facts: str) -> str:
    """SHA-256 of the facts and of every tensor's name, dtype, shape and bytes, in the order of the names."""
    digest = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> RunState:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if "facts" not in metadata or checksum(tensors, metadata["facts"]) != metadata.get("sha256"):
        raise ValueError("its content is not what was written")
    facts = json.loads(metadata["facts"])
    return RunState(int(facts.pop("step")), tensors, facts)


def _alike(value: Any, own: Any) -> bool:
    """Whether a value from JSON has the keys and types of another; counts are at least zero, lists not empty."""
    if isinstance(own, dict):
        return isinstance(value, dict) and value.keys() == own.keys() and all(_alike(value[k], own[k]) for k in own)
    if isinstance(own, list):
        return isinstance(value, list) and len(value) > 0 and all(_alike(item, own[0]) for item in value)
    return fits(value, type(own)) and (not isinstance(own, int) or 0 <= value <= 10**9)


def _newest_first(folder: Path) -> list[Path]:
    paths = folder.iterdir() if folder.is_dir() else ()
    numbers = {path: int(match[1]) for path in paths if (match := NAME.fullmatch(path.name))}
    return sorted(numbers, key=numbers.__getitem__, reverse=True)
