"""16-bit grey image files: the file says how bright a number is, not the brightest pixel."""

import numpy as np
import pytest
from PIL import Image

from minti.formats.image_files import open_image


def opened(path, values):
    """What a file of 16-bit greys is opened as, one grey for each."""
    Image.fromarray(np.array([values], dtype=np.uint16)).save(path)
    image = open_image(path)
    assert image.mode == "RGB"
    red, green, blue = np.moveaxis(np.asarray(image)[0].astype(int), -1, 0)
    assert (red == green).all() and (green == blue).all()
    return red.tolist()


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("brightest", [0, 255, 256, 65535])
def test_one_pixel_of_16_bits_decides_nothing(tmp_path, suffix, brightest):
    """A dark image is dark, whatever its brightest pixel is: v / 65535 of white, rounded."""
    dark = [0, 100, 200, 255]
    got = opened(tmp_path / f"deep.{suffix}", [*dark, brightest])
    assert got == [round(255 * value / 65535) for value in [*dark, brightest]]


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_all_of_16_bits_are_scaled_to_8(tmp_path, suffix):
    values = list(range(0, 65536, 257))
    assert opened(tmp_path / f"deep.{suffix}", values) == list(range(256))
