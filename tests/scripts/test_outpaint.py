"""Outpainting: the middle stays, and a canvas that is too large is refused."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from helpers import seeded
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("outpaint")


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8))


def test_the_middle_is_the_picture_and_the_border_is_drawn(tiny, script, image):
    one, other = (
        script.outpainted(tiny, image, "a cat", 8, generator=seeded(s), num_inference_steps=2) for s in (1, 2)
    )
    assert one.size == (32, 32)
    assert one.crop((8, 8, 24, 24)).tobytes() == image.tobytes() == other.crop((8, 8, 24, 24)).tobytes()
    assert one.tobytes() != other.tobytes()


@pytest.mark.parametrize(
    ("border", "message"),
    [(7, "a border of 7 pixels; expected a multiple of 2"), (32, "a canvas of 80 x 80 pixels; at most 64 a side")],
)
def test_an_impossible_border_is_refused(tiny, script, image, border, message):
    with pytest.raises(ValueError, match=message):
        script.outpainted(tiny, image, "a cat", border)
