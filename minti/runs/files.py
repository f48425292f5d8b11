"""Atomic writing of files: a failure never costs what was there."""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

LEFTOVER = re.compile(r"\..+\.\w{8}\.tmp")  # as `replacing` names its temporary files


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Atomic writing: gives the name of a temporary file, which takes the place of `path` once it is on the disk, so
    that a full disk, a kill or a power failure leaves the former file whole. Folders are created, a link is followed,
    permissions are kept. Raises OSError: it cannot be written."""
    path, temporary = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        target = Path(os.path.realpath(path))
        name = os.fsencode(target.name)[:200].decode(errors="ignore")  # file systems count bytes
        new = target.with_name(f".{name}.{secrets.token_hex(4)}.tmp")
        new.touch(exist_ok=False)  # with the permissions that any new file gets
        temporary, mode = new, (target if target.is_file() else new).stat().st_mode & 0o777
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, mode)  # safetensors writes a file of its own, which nobody else may read
        os.replace(temporary, target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(f"cannot write {path}: {reason}; what was there is unchanged") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Removes temporary files of processes that were killed while writing; nobody else may be writing now."""
    for path in Path(folder).iterdir():
        if LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)
