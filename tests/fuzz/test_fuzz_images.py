"""Image files of every format and mode, damaged in every way; and images of any mode and size."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from fuzzing import DAMAGE, bounded, check_message, flipped, inputs, refusal
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from minti.formats.image_files import open_image, to_rgb
from minti.images import to_pixels

SUFFIX = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif", "TIFF": "tiff", "BMP": "bmp"}
MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("1", "L", "P"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "I;16", "I;16B", "F"),
    "BMP": ("1", "L", "P", "RGB"),
}


def image(mode: str, size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A random image of a mode."""
    rng = np.random.default_rng(seed)
    if mode == "F":
        return Image.fromarray(rng.normal(0, 10 ** rng.uniform(-3, 3), size[::-1]).astype(np.float32))
    if mode in ("I", "I;16", "I;16B"):
        kind = {"I": np.int32, "I;16": "<u2", "I;16B": ">u2"}[mode]
        return Image.fromarray(rng.integers(0, 2**16, size[::-1]).astype(kind))
    bands = len(Image.new(mode, (1, 1)).getbands()) if mode not in ("1", "P") else 1
    noise = rng.integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    whole = Image.frombytes("L" if mode in ("1", "P") else mode, size, noise.tobytes())
    return whole.convert(mode) if mode in ("1", "P") else whole


def encoded(kind: str, mode: str, size: tuple[int, int], seed: int, **options) -> bytes:
    """The bytes of a file with such an image."""
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = seed % 9
    image(mode, size, seed).save(file, kind, **({"exif": exif} if kind in ("JPEG", "WEBP", "PNG") else {}), **options)
    return file.getvalue()


def check_open(path) -> None:
    """An image of bytes, or a refusal that names the file."""
    with refusal(path):
        opened = open_image(path)
        assert opened.mode == "RGB"
        pixels = to_pixels(opened, 16)
        assert pixels.shape == (3, 16, 16)
        assert pixels.isfinite().all()
        assert pixels.abs().max() <= 1


KINDS = st.sampled_from([(kind, mode) for kind, modes in MODES.items() for mode in modes])
SIZES = st.one_of(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.sampled_from([(1, 3000), (3000, 1)]))


@inputs(16)
@given(KINDS, SIZES, st.integers(0, 99), DAMAGE)
@example(("TIFF", "LAB"), (8, 8), 0, ([], 1.0))
@example(("TIFF", "F"), (8, 8), 0, ([], 1.0))
@example(("JPEG", "CMYK"), (8, 8), 6, ([], 0.9))
@example(("PNG", "P"), (1, 1), 0, ([], 0.0))
def test_a_damaged_image_is_read_or_refused(folder, kind, size, seed, damage):
    path = folder / f"image.{SUFFIX[kind[0]]}"
    path.write_bytes(flipped(encoded(*kind, size, seed), *damage) if damage[1] else b"")
    check_open(path)


@inputs(6)
@given(
    st.sampled_from(("PNG", "TIFF")),
    st.integers(0, 99),
    st.lists(st.tuples(st.integers(0, 11), st.sampled_from((0, 1, 2, 7, 255, 2**15, 2**16, 2**31 - 1, 2**32 - 1)))),
)
@example("PNG", 0, [(0, 100_000), (1, 100_000)])
def test_a_lying_header_is_refused(folder, kind, seed, lies):
    """Numbers of a whole header replaced, with the checksums made right: sizes, depths, tags, offsets."""
    data = bytearray(encoded(kind, "RGB", (9, 7), seed))
    for place, value in lies:
        if kind == "PNG" and place < 2:
            struct.pack_into(">I", data, 16 + 4 * place, value)
        elif kind == "PNG":
            data[24 + place % 5] = value % 256
        else:
            entry = struct.unpack_from("<I", data, 4)[0] + 2 + 12 * place
            if entry + 12 <= len(data):
                struct.pack_into("<I", data, entry + 8, value)
    if kind == "PNG":
        struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    path = folder / f"image.{SUFFIX[kind]}"
    path.write_bytes(data)
    check_open(path)


@inputs(4)
@given(st.sampled_from(sorted({*MODES["TIFF"], "RGBa", "La", "HSV", "PA", "RGBX"})), SIZES, st.integers(0, 9))
def test_an_image_of_any_mode_becomes_rgb(mode, size, seed):
    """Those that somebody opened otherwise, and hands over."""
    with refusal():
        rgb = to_rgb(image(mode, size, seed))
        assert (rgb.mode, rgb.size) == ("RGB", size)


@pytest.mark.parametrize("side", [20_000, 100_000])
def test_an_image_too_large_is_refused_for_its_size(folder, side):
    """Some hundred bytes that promise 10 gigapixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    data = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    (folder / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    with bounded(), pytest.raises(ValueError, match="more pixels than are read safely") as caught:
        open_image(folder / "huge.png")
    check_message(caught.value, folder / "huge.png")


def test_only_image_formats_are_opened(folder):
    """PostScript is a program, for which Pillow would start Ghostscript."""
    (folder / "program.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match="is not an image that can be read"):
        open_image(folder / "program.png")
