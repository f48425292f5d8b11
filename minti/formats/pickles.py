"""Pickles (`.ckpt`, `.pt`, `.bin`) by torch's restricted reader, which can run no code that a file brings along."""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from minti.runs.messages import one_line, shortened


class ModelCheckpoint:
    """Stands for the class of the training framework that sd-v1-4.ckpt mentions; it does nothing."""

    __module__ = "pytorch_lightning.callbacks.model_checkpoint"  # the name by which the file asks for it


def read_pickle(path: Path) -> Any:
    """The content of a `.ckpt`, `.pt` or `.bin` file: tensors and plain containers; nothing in it is executed.
    Raises ValueError: the file is damaged, or holds anything else; names the file."""
    try:
        with torch.serialization.safe_globals([ModelCheckpoint]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        what = re.search(r"(?:GLOBAL|global) (\S+)", str(error))
        asks = f"asks to run {shortened(what[1])}" if what else "is no file of tensors"
        raise ValueError(f"{path} {asks}, which minti refuses; use a safetensors file instead") from None
    except Exception as error:  # torch's reader fails in all manners: struct.error, IndexError, AttributeError ...
        raise ValueError(f"{path} is damaged ({one_line(error)}); fetch it again") from None
