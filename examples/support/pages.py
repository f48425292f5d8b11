"""Pages of labelled pictures."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont


def page(
    rows: Sequence[tuple[str, Sequence[Image.Image]]], size: int = 128, headings: Sequence[str] = ()
) -> Image.Image:
    """Labelled rows of pictures on one white page; small pictures are enlarged without smoothing.

    Args:
        rows: (label, pictures) for each row; a label may have several lines.
        size: width of a picture on the page.
        headings: what stands above the columns, one line each.
    """
    gap, label_width, heading_height = 4, 190, 20 if headings else 0
    columns = max(len(pictures) for _, pictures in rows)
    width, height = label_width + columns * (size + gap), heading_height + len(rows) * (size + gap) + gap
    canvas = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for column, heading in enumerate(headings):
        pen.text((label_width + column * (size + gap) + size // 2, heading_height // 2), heading, "black", font, "mm")
    for row, (label, pictures) in enumerate(rows):
        top = heading_height + gap + row * (size + gap)
        pen.multiline_text((8, top + size // 2), _wrap(label, font, label_width - 16), "black", font, anchor="lm")
        for column, picture in enumerate(pictures):
            smooth = Image.Resampling.NEAREST if picture.width <= size else Image.Resampling.LANCZOS
            canvas.paste(picture.resize((size, size), smooth), (label_width + column * (size + gap), top))
    return canvas


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    lines: list[str] = []
    for word in text.split(" "):
        if lines and font.getlength(f"{lines[-1]} {word}".split("\n")[-1]) <= width:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return "\n".join(lines)
