"""Image files of every kind, pixels, and a grid of images."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from minti import images
from minti.evaluation.grids import grid
from minti.formats.image_files import open_folder, open_image
from minti.personalization.augmented_images import open_captions


def corners(image):
    """The four corner pixels."""
    w, h = image.size
    return [image.getpixel(p) for p in ((0, 0), (w - 1, 0), (0, h - 1), (w - 1, h - 1))]


def test_exif_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (20, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to look right
    image.save(tmp_path / "turned.png", exif=exif)
    opened = open_image(tmp_path / "turned.png")
    assert opened.size == (20, 40)
    assert corners(opened) == [(255, 0, 0), (255, 0, 0), (0, 0, 255), (0, 0, 255)]


def test_an_image_that_the_caller_has_opened_is_turned_upright_too(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    expected = images.to_pixels(image.transpose(Image.Transpose.ROTATE_270), 16)
    for opened in (Image.open(tmp_path / "turned.png"), open_image(tmp_path / "turned.png")):
        assert torch.equal(images.to_pixels(opened, 16), expected)


def test_a_png_with_much_beside_its_pixels_is_not_called_damaged(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 3_000_000, zip=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=text)
    with pytest.raises(ValueError, match=r"a\.png has text or a colour profile of over 1 MB beside its pixels; save"):
        open_image(tmp_path / "a.png")


def test_hidden_files_are_passed_over_and_folders_told(tmp_path):
    """macOS leaves ._NAME beside every file on other systems' disks; kohya's trainer has its images in folders."""
    for name in ("cat.png", "._cat.png", ".hidden/cat.png", "10_cat/cat.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name, "png")
    for name in ("cat.txt", "._cat.txt", "._dog.txt"):
        (tmp_path / name).write_text("a {}", encoding="utf-8")
    with pytest.warns(UserWarning) as told:
        assert len(open_folder(tmp_path)) == 1
    assert [str(one.message) for one in told] == [f"{tmp_path / '10_cat'} is a folder; passed over"]
    with pytest.warns(UserWarning):
        assert open_captions(tmp_path) == ["a {}"]


def test_transparency_is_laid_on_white(tmp_path):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.putpixel((0, 0), (10, 20, 30, 255))
    image.save(tmp_path / "clear.png")
    assert corners(open_image(tmp_path / "clear.png")) == [(10, 20, 30)] + [(255, 255, 255)] * 3
    grey = Image.new("LA", (4, 4), (0, 0))
    grey.save(tmp_path / "grey.png")
    assert corners(open_image(tmp_path / "grey.png"))[0] == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.save(tmp_path / "palette.gif", transparency=0)
    assert corners(open_image(tmp_path / "palette.gif"))[0] == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK"])
def test_other_modes_become_rgb(tmp_path, mode):
    image = Image.new("RGB", (8, 8), "white").convert(mode)
    path = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    image.save(path)
    opened = open_image(path)
    assert opened.mode == "RGB"
    assert opened.getpixel((3, 3)) == (255, 255, 255)


def test_sixteen_bits_are_scaled(tmp_path):
    Image.fromarray(np.array([[0, 32896], [65535, 257]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert [p[0] for p in corners(open_image(tmp_path / "deep.png"))] == [0, 128, 255, 1]


def test_bad_files_are_named(tmp_path):
    (tmp_path / "text.png").write_text("not an image", encoding="utf-8")
    with pytest.raises(ValueError, match=r"text\.png is not an image"):
        open_image(tmp_path / "text.png")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    for name in ("cut.png", "cut.jpg"):
        noise.save(tmp_path / name)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            open_image(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no such image"):
        open_image(tmp_path / "none.png")


def test_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        open_folder(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no image"):
        open_folder(tmp_path)
    for name in ("b.png", "a.JPG", ".hidden.png"):
        Image.new("RGB", (9, 9), "red" if name == "b.png" else "lime").save(
            tmp_path / name, format="PNG" if name.endswith("png") else "JPEG"
        )
    (tmp_path / "notes.txt").write_text("no image, and none by its name", encoding="utf-8")
    with pytest.warns(UserWarning, match=r"notes\.txt is not an image by its name"):
        opened = open_folder(tmp_path)
    assert [image.getpixel((4, 4))[0] > 128 for image in opened] == [False, True]


def test_pixels_crop_the_centre_and_mirror():
    image = Image.new("RGB", (60, 20), "black")
    image.paste("white", (20, 0, 30, 20))  # the left half of the middle square
    pixels = images.to_pixels(image, 20)
    assert pixels.shape == (3, 20, 20)
    assert pixels.dtype == torch.float32
    assert (pixels[:, :, :10] == 1).all()
    assert (pixels[:, :, 10:] == -1).all()
    assert torch.equal(images.to_pixels(image, 20, flip=True), pixels.flip(-1))


@pytest.mark.parametrize("size", [(3, 5), (500, 333), (16, 16)])
def test_any_size_reaches_the_resolution(size):
    pixels = images.to_pixels(Image.new("RGB", size, (255, 0, 0)), 16)
    torch.testing.assert_close(pixels, torch.tensor([1.0, -1, -1])[:, None, None].expand(3, 16, 16))


def test_round_trip_is_exact():
    array = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    image = Image.fromarray(array)
    assert np.array_equal(np.asarray(images.to_pil(images.to_pixels(image, 16)[None])[0]), array)


def test_grid():
    page = grid([Image.new("RGB", (4, 3), c) for c in ("red", "lime", "blue")], columns=2, gap=1)
    assert page.size == (9, 7)
    assert [page.getpixel(p) for p in ((0, 0), (5, 0), (0, 4))] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.25, 0.5, 1.0], [0, 64, 128, 255]),  # light as a share of white
        ([0.0, 64.0, 128.0, 255.0], [0, 64, 128, 255]),
        ([np.nan, -1.0, 0.5, np.inf], [0, 0, None, 255]),  # what is no light is black, what is too much white
    ],
)
def test_floating_point_tiffs(tmp_path, values, expected):
    Image.fromarray(np.array(values, dtype=np.float32).reshape(2, 2)).save(tmp_path / "light.tiff")
    grey = [p[0] for p in corners(open_image(tmp_path / "light.tiff"))]
    assert [got for got, known in zip(grey, expected) if known is not None] == [e for e in expected if e is not None]


def png_header(width, height):
    """A PNG of so many pixels that has none of them."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b""))
    )


def test_a_huge_image_is_called_huge_and_not_damaged(tmp_path):
    (tmp_path / "huge.png").write_bytes(png_header(100_000, 100_000))
    with pytest.raises(ValueError, match=r"huge\.png has more pixels than are read safely \([\d,]+\); make it smaller"):
        open_image(tmp_path / "huge.png")
