"""Memory of the process: how much it has taken at most, and keeping what is freed."""

import ctypes
import resource
import sys
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Has glibc keep up to 2 GiB of freed memory; elsewhere it does nothing.

    glibc returns large blocks to the system at once, and the next tensor's memory is zeroed page by page: a tenth of
    the time of SD v1.4's steps on a CPU. Holes in it can add to the peak memory; examples/benchmark.md says how much.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)  # no block is mapped, and given back, on its own
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def peak_memory(device: str, reset: bool = False) -> int:
    """Bytes since the last reset, where the system knows: on a GPU torch's, on a CPU the process's."""
    if device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated()
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return peak
    status = Path("/proc/self/status")
    if not status.exists():  # macOS counts in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = next(
        int(line.split()[1]) for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM")
    )
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return peak * 1024
