"""A report as one HTML file: opens offline, at any width, light or dark, on paper; a click enlarges its images."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

STYLE = """
:root { color-scheme: light dark; }
body { margin: auto; max-width: 64rem; padding: 1rem; font: 1rem/1.5 Georgia, serif; }
h2 { margin-top: 3rem; border-top: 1px solid #8888; padding-top: .8rem; }
p { max-width: 42rem; }
code { overflow-wrap: anywhere; }
pre { overflow-x: auto; font-size: .85rem; }
.soft, figcaption, th, .meter { color: GrayText; font-size: .85rem; }
.card { border: 1px solid #8888; border-radius: .5rem; padding: .1rem 1rem .9rem; margin: .9rem 0;
  break-inside: avoid; }
.images, .meters { display: flex; flex-wrap: wrap; gap: .5rem; }
.meters { gap: .5rem 2rem; }
figure { margin: 0; width: 8rem; overflow-wrap: anywhere; }
.small figure { width: 4.9rem; }
.wide figure { width: 29rem; max-width: 100%; }
.first { border-right: 1px solid #8888; padding-right: .6rem; }
button { padding: 0; border: 0; background: none; width: 100%; cursor: zoom-in; }
img { display: block; width: 100%; }
img.pixels { image-rendering: pixelated; }
dialog { border: 0; padding: 0; }
dialog::backdrop { background: #000c; }
dialog img { width: min(92vw, 88vh); }
.scroll { overflow-x: auto; }
th, td { text-align: right; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid #8888; }
.words :is(th, td), :is(th, td):first-child { text-align: left; }
@media print { body { font-size: 10pt; } nav { display: none; }
  figure { width: 5.2rem; } .small figure { width: 4rem; } }
"""
SCRIPT = """
const dialog = document.querySelector("dialog");
document.onclick = ({target}) => {
  const image = target.closest("button")?.querySelector("img");
  if (dialog.open) dialog.close();
  else if (image) { dialog.replaceChildren(image.cloneNode()); dialog.showModal(); }
};
"""


class Report:
    """Sections of HTML that become one file."""

    def __init__(self, title: str, introduction: str):
        self.title, self.introduction, self.sections = title, introduction, []

    def section(self, title: str, *blocks: str) -> None:
        """Adds a section; the blocks are HTML."""
        self.sections.append((escape(title), "\n".join(blocks)))

    def write(self, path: Path) -> None:
        """The whole file."""
        links = "".join(f'<li><a href="#s{i}">{title}</a></li>' for i, (title, _) in enumerate(self.sections))
        body = "".join(f'<h2 id="s{i}">{title}</h2>\n{text}\n' for i, (title, text) in enumerate(self.sections))
        path.write_text(
            f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(self.title)}</title>\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style>\n'
            f"<h1>{escape(self.title)}</h1>\n{self.introduction}\n<nav><ol>{links}</ol></nav>\n{body}"
            f'<dialog aria-label="enlarged image"></dialog>\n<script>{SCRIPT}</script>\n</html>\n',
            encoding="utf-8",
        )


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>'


def image(picture: Image.Image, caption: str = "", description: str = "") -> str:
    """An image with a caption; small ones as PNG, shown without smoothing, large ones as JPEG."""
    file, small = io.BytesIO(), max(picture.size) <= 256
    picture.convert("RGB").save(file, "PNG" if small else "JPEG", quality=88)
    data, kind = base64.b64encode(file.getvalue()).decode(), "png" if small else "jpeg"
    alt = escape(description or caption, quote=True)
    return figure(
        f'<img src="data:image/{kind};base64,{data}" alt="{alt}" class="{"pixels" if small else ""}">', caption
    )


def figure(shown: str, caption: str = "") -> str:
    """An `<img>` that a click enlarges."""
    return f'<figure><button type="button">{shown}</button><figcaption>{escape(caption)}</figcaption></figure>'


def images(figures: Sequence[str], kind: str = "") -> str:
    """Figures in a line that wraps; of the kind "small", "wide" or "first" (with a line behind them)."""
    return f'<div class="images {kind}">{"".join(figures)}</div>'


def code(text: str) -> str:
    """Lines of a program."""
    return f"<pre><code>{escape(text)}</code></pre>"


def card(heading: str, *blocks: str) -> str:
    """What belongs together; the heading is shown as code."""
    return f'<div class="card"><h3><code>{escape(heading)}</code></h3>{"".join(blocks)}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[object]], kind: str = "") -> str:
    """A table that scrolls where the page is too narrow; of the kind "words" one of text rather than numbers."""
    text = lambda value: escape(f"{value:.3f}" if isinstance(value, float) else str(value))  # noqa: E731
    body = "".join("<tr>" + "".join(f"<td>{text(value)}</td>" for value in row) + "</tr>" for row in rows)
    head = "".join(f"<th>{text(name)}</th>" for name in header)
    return f'<div class="scroll"><table class="{kind}"><tr>{head}</tr>{body}</table></div>'


def meter(name: str, value: float, floor: float, ceiling: float, ends: tuple[str, str]) -> str:
    """A value on the line between its two bounds."""
    at = (value - floor) / room if abs(room := ceiling - floor) > 1e-6 else 0.5
    return (
        f'<div class="meter"><b>{escape(name)}</b> {value:.3f}<br><meter value="{at:.3f}"></meter><br>'
        f"{escape(ends[0])} {floor:.3f} to {escape(ends[1])} {ceiling:.3f}</div>"
    )
