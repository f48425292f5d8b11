"""The model of the full-size tests: random weights in the release's own layout, or the release itself.

Both libraries open the same files; everything is compared in float32 on the CPU and is equal bit for bit.

    pytest -m full_size                                      # random weights, written for the occasion
    MINTI_SD_V1_4=FOLDER_FILE_OR_HUB_ID pytest -m release    # the same tests on the real ones
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import diffusers
import pytest
import torch
from helpers import REAL_RELEASE, THREADS

import minti
from full_size.release import Release, write_configs, write_weights

GB = 10**9
NEEDED = 15 * GB  # of memory and of disk


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes many minutes and 15 GB is left out, and not listed as skipped, unless `-m` names it."""
    others = {"full_size", "release"} - set(re.findall(r"(?<!not )\b\w+\b", config.option.markexpr))
    left_out = [item for item in items if any(item.get_closest_marker(name) for name in others)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="package", autouse=True)
def all_threads() -> Iterator[None]:
    """As many threads as there are cores: one is best for small tensors only."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(
    scope="package",
    params=[
        pytest.param("random", marks=pytest.mark.full_size),
        pytest.param("real", marks=pytest.mark.release),
    ],
)
def release(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """SD v1.4 on disk."""
    folder = tmp_path_factory.mktemp("full")
    check_room(folder)
    write_configs(folder / "sd-v1-4")
    if request.param == "real":
        if Path(REAL_RELEASE).is_file():
            tokenizer = minti.StableDiffusion.from_pretrained(REAL_RELEASE).tokenizer
            tokenizer.save_pretrained(folder / "sd-v1-4/tokenizer")
        yield Release(REAL_RELEASE, folder / "sd-v1-4", steps=20)
    else:
        write_weights(folder / "sd-v1-4")
        yield Release(str(folder / "sd-v1-4"), folder / "sd-v1-4", steps=2)
    shutil.rmtree(folder)


def check_room(folder: Path) -> None:
    """Skips where the memory or the disk is too small."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        (line,) = (line for line in meminfo.read_text(encoding="utf-8").splitlines() if line.startswith("MemAvailable"))
        memory = int(line.split()[1]) * 1024
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    disk = shutil.disk_usage(folder).free
    if min(memory, disk) < NEEDED:
        pytest.skip(
            f"SD v1.4's full size needs {NEEDED / GB:.0f} GB of memory and of disk; free are {memory / GB:.1f} GB of "
            f"memory and {disk / GB:.1f} GB of disk at {folder}"
        )


@pytest.fixture(scope="package")
def ours(release: Release) -> minti.StableDiffusion:
    return release.ours()


@pytest.fixture(scope="package")
def theirs(release: Release) -> diffusers.StableDiffusionPipeline:
    return release.theirs()
