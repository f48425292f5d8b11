"""Models that the fuzz tests may spoil."""

from __future__ import annotations

import copy
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import minti

sys.path.append(str(Path(__file__).parents[2] / "examples"))
former = signal.getsignal(signal.SIGINT)
import support  # noqa: E402, F401

signal.signal(signal.SIGINT, former)  # importing the scripts' support lets Ctrl-C end a process at once


@pytest.fixture(scope="session")
def fresh(tiny_folder) -> Callable[[], minti.StableDiffusion]:
    """Makes copies of the small model, faster than it is opened."""
    model = minti.StableDiffusion.from_pretrained(tiny_folder)
    return lambda: copy.deepcopy(model)


@pytest.fixture
def folder(tmp_path_factory):
    """An empty folder."""
    return tmp_path_factory.mktemp("fuzz")
