"""Freed memory stays with the process: on a CPU, a tenth of the time of SD v1.4's steps goes into fetching it anew."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Has glibc keep up to 2 GiB of what is freed; elsewhere it does nothing.

    glibc gives large blocks back to the system at once, which hands out the next tensor's memory page by page, each
    filled with zeros first. What is kept was in use before, but holes in it can add to the peak; examples/benchmark.md
    says how much.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)  # no block is mapped, and given back, on its own
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
