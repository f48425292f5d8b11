"""Image files: opened whatever they hold, upright and as RGB; written atomically."""

import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from minti.runs.files import replacing
from minti.runs.messages import one_line

EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # whatever its name: others of Pillow's start other programs
# Pillow scales pixels of these depths to 8 bits, but not the one value of a PNG that is transparent.
DEPTHS = {"L;2": lambda v: 85 * v, "L;4": lambda v: 17 * v, "RGB;16B": lambda v: tuple(each >> 8 for each in v)}


def open_image(path: str | os.PathLike[str], alpha: bool = False) -> Image.Image:
    """An image file as RGB, upright by its EXIF tag; transparency is laid on white, or kept with `alpha`; grey, palette
    and 16-bit images are converted. Raises FileNotFoundError, ValueError, and warns: names the file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image")
    try:
        with warnings.catch_warnings(record=True) as told, Image.open(path, formats=FORMATS) as file:
            warnings.simplefilter("always")
            scaled = DEPTHS.get(str(file.tile[0][3])) if file.tile else None
            if scaled and "transparency" in file.info:
                file.info["transparency"] = scaled(file.info["transparency"])
            upright = ImageOps.exif_transpose(file)
            upright.format = file.format
            image = to_rgb(upright, alpha)
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not an image that can be read; remove it or convert it to PNG") from None
    except Image.DecompressionBombError:
        most = f"{2 * Image.MAX_IMAGE_PIXELS:,}"
        raise ValueError(f"{path} has more pixels than are read safely ({most}); make it smaller") from None
    except MemoryError:
        raise ValueError(f"{path} is too large for the memory there is; make it smaller") from None
    except Exception as error:  # Pillow's decoders fail in all manners: struct.error, KeyError, ZeroDivisionError ...
        if "MAX_TEXT" in str(error):
            beside = "text or a colour profile of over 1 MB beside its pixels"
            raise ValueError(f"{path} has {beside}; save it again without") from None
        raise ValueError(f"{path} is damaged ({one_line(error)}); replace it with a whole file") from None
    for each in told:
        warnings.warn(f"{path}: {one_line(each.message)}", each.category, stacklevel=2)
    return image


def to_rgb(image: Image.Image, alpha: bool = False) -> Image.Image:
    """Any mode to RGB: greys of more than 8 bits are scaled to 8, transparency is laid on white, or kept with `alpha`
    (RGBA)."""
    if image.mode.startswith(("I", "F")):
        image = _of_8_bits(image)
    if not _is_transparent(image):
        return image.convert("RGB")
    image = image.convert("RGBA")
    return image if alpha else Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _of_8_bits(image: Image.Image) -> Image.Image:
    """A grey image of 16 or 32 bits as L, or LA where one of its greys is transparent. Floats are shares of white, if
    at most one in a hundred is above 2 (what is above 1 is white), and else greys from 0 to 255."""
    grey = np.nan_to_num(np.asarray(image, dtype=np.float64))
    clear = grey == image.info.get("transparency")
    # Mode "I" is what Pillow makes of a file's 16 bits, and of whole numbers that a program has computed.
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and (image.format or grey.max(initial=0) > 255))
    if image.mode == "F" and (grey > 2).mean() <= 0.01:
        grey = grey * 255
    elif sixteen:
        grey = grey / 257  # 65535 -> 255
    result = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    if clear.any():
        result.putalpha(Image.fromarray(np.where(clear, 0, 255).astype(np.uint8)))
    return result


def _is_transparent(image: Image.Image) -> bool:
    return "A" in image.getbands() or "transparency" in image.info


def open_folder(folder: str | os.PathLike[str], alpha: bool = False) -> list[Image.Image]:
    """Every image of a folder, as by `open_image`, in the order of the file names; warns of files of other types."""
    return [open_image(path, alpha) for path in image_files(folder)]


def image_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The files of a folder that are images by their names; warns of others, but not of hidden ones."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected a folder with a few images")
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [path for path in visible if path.is_file() and path.suffix.lower() in EXTENSIONS]
    for path in set(visible) - set(files) - {path.with_suffix(".txt") for path in files}:  # which are captions
        kind = "is a folder" if path.is_dir() else "is not an image by its name"
        warnings.warn(f"{path} {kind}; passed over", stacklevel=2)
    if not files:
        raise ValueError(f"{folder} holds no image; expected files that end in {', '.join(sorted(EXTENSIONS))}")
    return files


def save_png(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Writes an image as PNG, atomically. Raises OSError: it cannot be written."""
    with replacing(path) as temporary:
        image.save(temporary, "png")
