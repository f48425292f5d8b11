"""Writing files so that a failure never costs what was there."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

LEFTOVER = re.compile(r"\..+\.\w{8}\.tmp")  # as mkstemp names them below


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives the name of a temporary file to write; when all went well, it takes the place of `path`, all at once.

    It is on the disk before it gets its name, so that neither a full disk, nor a kill, nor a power failure leaves half
    a file, or none, where a good one stood. Folders are created. Raises OSError: it cannot be written or renamed; names
    the file, and nothing has changed.
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
        os.chmod(temporary, 0o644)
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
