"""A grid of images on one page."""

from collections.abc import Sequence

from PIL import Image


def grid(images: Sequence[Image.Image], columns: int, gap: int = 2) -> Image.Image:
    """A grid of images of one size, row by row, on a white page."""
    width, height = images[0].size
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, image in enumerate(images):
        page.paste(image, (i % columns * (width + gap), i // columns * (height + gap)))
    return page
