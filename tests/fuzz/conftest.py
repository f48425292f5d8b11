"""Models that the fuzz tests may spoil."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable

import pytest

import minti

former = signal.getsignal(signal.SIGINT)
import support  # noqa: E402, F401

signal.signal(signal.SIGINT, former)  # importing the scripts' support lets Ctrl-C end a process at once


@pytest.fixture(scope="session")
def fresh(opened) -> Callable[[], minti.StableDiffusion]:
    """Makes copies of the small model, faster than it is opened."""
    return lambda: copy.deepcopy(opened)


@pytest.fixture
def folder(tmp_path_factory):
    """An empty folder."""
    return tmp_path_factory.mktemp("fuzz")
