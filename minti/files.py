"""Writing files so that a failure never costs what was there."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

LEFTOVER = re.compile(r"\..+\.\w{8}\.tmp")  # as mkstemp names them below


def shortened(text: str, most: int = 100) -> str:
    """The text as a message can hold it: what cannot be printed is escaped, and a long one is cut."""
    cut = text if len(text) <= most else text[:most] + " ..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def quoted(text: str, most: int = 100) -> str:
    """The text as Python writes it, or its beginning."""
    return repr(text[:most]) + (" ..." if len(text) > most else "")


def shown(value: object) -> str:
    """The value as Python writes it, shortened; its type where Python does not (an int of thousands of digits)."""
    try:
        return shortened(repr(value))
    except Exception:
        return f"a value of type {type(value).__name__}"


def one_line(error: BaseException) -> str:
    """What another library's error says, on one line; its name where it says nothing."""
    return shortened(" ".join(str(error).split()), 300) or type(error).__name__


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives the name of a temporary file to write; when all went well, it takes the place of `path`, all at once.

    It is on the disk before it gets its name, so that neither a full disk, nor a kill, nor a power failure leaves half
    a file, or none, where a good one stood. Folders are created.

    Raises:
        OSError: it cannot be written or renamed; names the file, and nothing has changed.
    """
    path, temporary = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(f"cannot write {path}: {reason}; what was there is unchanged") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Removes what processes that were killed while writing have left behind; nobody else may be writing now."""
    for path in Path(folder).iterdir():
        if LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)
