"""Grey image files of all depths: the file says how bright a number is, not the brightest pixel; transparency."""

import struct
import warnings
import zlib

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


@pytest.mark.parametrize("over", [1.02, 1.9, 30.0])
def test_one_float_beyond_white_decides_nothing(tmp_path, over):
    """Shares of white stay what they are: v of white, rounded; what is beyond is white."""
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    values[3, 4] = over
    Image.fromarray(values).save(tmp_path / "light.tiff")
    got = np.asarray(open_image(tmp_path / "light.tiff"))[..., 0]
    expected = np.arange(256).reshape(16, 16)
    expected[3, 4] = 255
    assert (got == expected).all()


def test_floats_from_0_to_255(tmp_path):
    """Also where the image is dark: these are greys, not shares of white."""
    values = np.arange(256, dtype=np.float32).reshape(16, 16) / 4
    Image.fromarray(values).save(tmp_path / "dark.tiff")
    assert (np.asarray(open_image(tmp_path / "dark.tiff"))[..., 0] == values.round()).all()


def png(path, depth, colour, row, clear):
    """A PNG of one row, with one transparent grey or colour, as the specification has it (11.2.2, 11.3.2.1)."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    width = len(row) * 8 // (depth * (3 if colour == 2 else 1))
    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    parts = {b"IHDR": header, b"tRNS": struct.pack(f">{len(clear)}H", *clear), b"IDAT": zlib.compress(b"\0" + row)}
    content = b"".join(chunk(kind, data) for kind, data in (parts | {b"IEND": b""}).items())
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


@pytest.mark.parametrize(
    ("depth", "colour", "row", "clear", "greys"),
    [
        (16, 0, struct.pack(">4H", 0, 30000, 30001, 65535), (30000,), [0, None, 117, 255]),
        (8, 0, bytes([0, 100, 101, 255]), (100,), [0, None, 101, 255]),
        (4, 0, bytes([0x05, 0x6F]), (5,), [0, None, 102, 255]),
        (2, 0, bytes([0b00011011]), (1,), [0, None, 170, 255]),
        (1, 0, bytes([0b01010101]), (0,), [None, 255] * 4),
        (16, 2, struct.pack(">6H", *(30000,) * 3, *(65535,) * 3), (30000,) * 3, [None, 255]),
        (8, 2, bytes([100] * 3 + [255] * 3), (100,) * 3, [None, 255]),
    ],
)
def test_the_transparent_grey_of_every_depth(tmp_path, depth, colour, row, clear, greys):
    """It is clear, and no other is; laid on white, it is white."""
    path = png(tmp_path / "clear.png", depth, colour, row, clear)
    kept = np.asarray(open_image(path, alpha=True))[0].astype(int)
    assert kept[:, 3].tolist() == [0 if grey is None else 255 for grey in greys]
    assert [red for red, *_, alpha in kept.tolist() if alpha] == [grey for grey in greys if grey is not None]
    assert np.asarray(open_image(path))[0, :, 0].tolist() == [255 if grey is None else grey for grey in greys]


def test_warnings_name_the_file(tmp_path, monkeypatch):
    """Pillow's own, of a large image, and of damaged EXIF tags."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0\x01\0"
    Image.new("RGB", (64, 64)).save(tmp_path / "tags.jpg", exif=exif)
    Image.new("RGB", (64, 64)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
    for name in ("tags.jpg", "large.png"):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            open_image(tmp_path / name)
        assert told
        assert all(str(each.message).startswith(f"{tmp_path / name}: ") for each in told)
