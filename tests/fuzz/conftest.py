"""Models that the fuzz tests may spoil."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest

import minti


@pytest.fixture(scope="session")
def fresh(tiny_folder) -> Callable[[], minti.StableDiffusion]:
    """Makes copies of the small model, faster than it is opened."""
    model = minti.StableDiffusion.from_pretrained(tiny_folder)
    return lambda: copy.deepcopy(model)


@pytest.fixture
def folder(tmp_path_factory):
    """An empty folder."""
    return tmp_path_factory.mktemp("fuzz")
