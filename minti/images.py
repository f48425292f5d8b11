"""Pictures: from files to pixels and back, and pages of them."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from minti.machine.files import replacing
from minti.machine.messages import one_line

EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # whatever its name: others of Pillow's start other programs


def open_image(path: str | os.PathLike[str], alpha: bool = False) -> Image.Image:
    """A picture file as RGB, upright by its EXIF tag; transparency is laid on white, or with `alpha` kept where there
    is any; grey, palette and 16-bit pictures are converted.

    Raises FileNotFoundError, ValueError: no such file, not a picture, or a truncated one; names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such picture")
    try:
        with Image.open(path, formats=FORMATS) as file:
            upright = ImageOps.exif_transpose(file)
            return upright.convert("RGBA") if alpha and _is_transparent(upright) else to_rgb(upright)
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not a picture that can be read; remove it or convert it to PNG") from None
    except Image.DecompressionBombError:
        most = f"{2 * Image.MAX_IMAGE_PIXELS:,}"
        raise ValueError(f"{path} has more pixels than are read safely ({most}); make it smaller") from None
    except MemoryError:
        raise ValueError(f"{path} is too large for the memory there is; make it smaller") from None
    except Exception as error:  # Pillow's decoders fail in all manners: struct.error, KeyError, ZeroDivisionError ...
        raise ValueError(f"{path} is damaged ({one_line(error)}); replace it with a whole file") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: 16-bit greys are scaled to 8 bits, transparency is laid on white."""
    if image.mode.startswith(("I", "F")):
        grey = np.nan_to_num(np.asarray(image, dtype=np.float64))
        if image.mode == "F" and grey.max(initial=0) <= 1:
            grey = grey * 255  # light as a share of white
        elif image.mode != "F" and grey.max(initial=0) > 255:
            grey = grey / 257  # 65535 -> 255
        image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    if _is_transparent(image):
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def _is_transparent(image: Image.Image) -> bool:
    return "A" in image.getbands() or "transparency" in image.info


def open_folder(folder: str | os.PathLike[str], alpha: bool = False) -> list[Image.Image]:
    """Every picture of a folder, as by `open_image`, in the order of the file names; warns of files of other types.
    Raises FileNotFoundError, ValueError: the folder is missing, holds no picture, or a picture is damaged."""
    return [open_image(path, alpha) for path in picture_files(folder)]


def open_captions(folder: str | os.PathLike[str]) -> list[str]:
    """What NAME.txt beside each picture NAME of a folder says of it, in the order of the pictures.
    Raises FileNotFoundError, ValueError: a picture has no caption, or a caption no picture; names it."""
    files = picture_files(folder)
    alone = {path.stem for path in Path(folder).glob("*.txt")} - {path.stem for path in files}
    if alone:
        raise ValueError(f"{Path(folder) / min(alone)}.txt is a caption without its picture; remove or rename it")
    captions = []
    for path in files:
        path = path.with_suffix(".txt")
        try:
            captions.append(" ".join(path.read_text(encoding="utf-8").split()))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read ({one_line(error)}); every picture needs a caption") from None
    return captions


def picture_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The files of a folder that are pictures by their names, as `open_folder` opens them."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected a folder with a few pictures")
    visible = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    files = [path for path in visible if path.suffix.lower() in EXTENSIONS]
    for path in set(visible) - set(files) - {path.with_suffix(".txt") for path in files}:  # which are captions
        warnings.warn(f"{path} is not a picture by its name; passed over", stacklevel=2)
    if not files:
        raise ValueError(f"{folder} holds no picture; expected files that end in {', '.join(sorted(EXTENSIONS))}")
    return files


def to_pixels(image: Image.Image, size: int | tuple[int, int], flip: bool = False) -> Tensor:
    """The transform of exercise E4: resize the shorter side, crop the centre, optionally mirror, scale.

    `size` is (height, width), or one number for both; a smaller picture is enlarged. Returns (3, height, width) float32
    in [-1, 1].
    """
    height, width = (size, size) if isinstance(size, int) else size
    fitted = ImageOps.fit(to_rgb(image), (width, height), Image.Resampling.BICUBIC)
    values = np.array(ImageOps.mirror(fitted) if flip else fitted)
    return from_bytes(torch.from_numpy(values).permute(2, 0, 1))  # h w c -> c h w


def opacity(images: Sequence[Image.Image], size: int, flip: bool = False) -> Tensor:
    """Where pictures, and with `flip` behind them their mirror images, are opaque: (n, 1, size, size) in [0, 1].
    Raises ValueError: one has no alpha channel, or is transparent everywhere."""
    masks = []
    for i, image in enumerate(images):
        if not isinstance(image, Image.Image) or "A" not in image.getbands():
            raise ValueError(f"picture {i} has no alpha channel to mask it by; give each picture one, or mask none")
        fitted = ImageOps.fit(image.getchannel("A"), (size, size), Image.Resampling.BICUBIC)
        masks.append(torch.from_numpy(np.array(fitted, dtype=np.float32))[None] / 255)
        if not masks[-1].any():
            raise ValueError(f"picture {i} is transparent everywhere: its mask leaves nothing to learn from")
    opaque = torch.stack(masks)
    return torch.cat([opaque, opaque.flip(-1)]) if flip else opaque


def from_bytes(values: Tensor) -> Tensor:
    """8-bit values, 0 to 255 in any dtype and shape, to float32 in [-1, 1]."""
    return values.float() / 127.5 - 1.0


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """(b, 3, H, W), clamped to [-1, 1], to 8-bit pictures."""
    unit = (pixels * 0.5 + 0.5).clamp(0, 1)
    arrays = unit.permute(0, 2, 3, 1).float().cpu().numpy()  # b h w c
    return [Image.fromarray(array) for array in (arrays * 255).round().astype(np.uint8)]


def save_png(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Writes a picture as PNG, all at once: a failure leaves no half of one. Raises OSError: it cannot be written."""
    with replacing(path) as temporary:
        image.save(temporary, "png")


def grid(images: Sequence[Image.Image], columns: int, gap: int = 2) -> Image.Image:
    """Pictures of one size, row by row on a white page."""
    width, height = images[0].size
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, image in enumerate(images):
        page.paste(image, (i % columns * (width + gap), i // columns * (height + gap)))
    return page
