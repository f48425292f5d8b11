"""A report as one file: opens offline, at any width, light or dark, on paper; its pictures enlarge."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

STYLE = """
:root { color-scheme: light dark; --page: #fbfaf8; --ink: #23211e; --soft: #6b665e; --line: #dcd7ce; --card: #fff;
  --s0: #1f6fb4; --s1: #c2570c; --s2: #6d6a66; --s3: #3b8447; }
@media (prefers-color-scheme: dark) { :root { --page: #171614; --ink: #e8e4dc; --soft: #a39d92; --line: #3a3732;
  --card: #201f1c; --s0: #6fb1ee; --s1: #f09a55; --s2: #a5a29c; --s3: #7fcb8c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--ink);
  font: 1rem/1.55 Georgia, "Times New Roman", serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 1rem 0 .3rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .3rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 .5rem; }
p { max-width: 42rem; margin: .5rem 0 1rem; }
nav ol { columns: 2 16rem; padding-left: 1.3rem; max-width: 42rem; }
a { color: var(--s0); }
code { font: .92em ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.soft, figcaption, .legend, th { color: var(--soft); font-size: .85rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .9rem 1rem;
  margin: .9rem 0; break-inside: avoid; }
.said, .card .soft { margin: .5rem 0 0; }
.pictures { display: flex; flex-wrap: wrap; gap: .5rem; margin: .4rem 0; }
.pictures .pictures { margin: 0; }
figure { margin: 0; width: 8rem; }
.small figure { width: 4.9rem; }
figcaption { line-height: 1.25; margin-top: .15rem; overflow-wrap: anywhere; }
figure button { display: block; width: 100%; padding: 0; border: 0; background: none; cursor: zoom-in; }
figure img { display: block; width: 100%; border-radius: .2rem; }
img.pixels { image-rendering: pixelated; }
.first { padding-right: .6rem; border-right: 1px solid var(--line); }
dialog { border: 0; padding: 0; background: transparent; max-width: 100vw; max-height: 100vh; }
dialog::backdrop { background: rgb(0 0 0 / .8); }
dialog img { width: min(92vw, 88vh); height: auto; max-height: 88vh; object-fit: contain; cursor: zoom-out; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: normal; vertical-align: bottom; }
th:first-child, td:first-child, .words th, .words td { text-align: left; vertical-align: top; }
.meters { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: .3rem 1.5rem;
  margin: .6rem 0; }
.meter { font-size: .85rem; }
.meter .bar { position: relative; height: .5rem; margin: .35rem 0; border-radius: .25rem; background: var(--line); }
.meter .bar i { position: absolute; top: -.2rem; width: .9rem; height: .9rem; margin-left: -.45rem; border-radius: 50%;
  background: var(--s0); }
.meter .ends { display: flex; justify-content: space-between; color: var(--soft); font-size: .8rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem; }
.chart svg { width: 100%; max-width: 30rem; height: auto; display: block; overflow: visible; }
.chart text { fill: var(--soft); font: 12px ui-sans-serif, system-ui, sans-serif; }
.chart .grid { stroke: var(--line); }
.legend span { margin-right: 1rem; white-space: nowrap; }
.legend i { display: inline-block; width: 1.1rem; height: 0; border-top: 3px solid; vertical-align: middle;
  margin-right: .3rem; }
@media (max-width: 40rem) { figure, .small figure { width: calc(25% - .4rem); }
  .first { width: 100%; border: 0; padding: 0; } .first figure { width: calc(40% - .4rem); } h1 { font-size: 1.5rem; } }
@media print { :root { --page: #fff; --ink: #000; --soft: #444; --line: #bbb; --card: #fff; --s0: #1f6fb4;
  --s1: #c2570c; --s2: #6d6a66; --s3: #3b8447; }
  body { max-width: none; padding: 0; font-size: 10pt; line-height: 1.4; } nav { display: none; }
  h2 { break-after: avoid; margin-top: 1.5rem; } .charts { grid-template-columns: 1fr 1fr; }
  .chart, .scroll { break-inside: avoid; } .meter { print-color-adjust: exact; }
  .card { padding: .5rem .8rem; margin: .5rem 0; } h3 { margin-bottom: .2rem; } .meters { margin: .3rem 0; }
  figure { width: 5.2rem; } .small figure { width: 4rem; } .small figcaption { font-size: .75rem; } }
"""
SCRIPT = """
const dialog = document.querySelector("dialog"), large = dialog.querySelector("img");
document.querySelectorAll("figure button").forEach(button => button.addEventListener("click", () => {
  const image = button.querySelector("img");
  large.src = image.src; large.alt = image.alt; large.className = image.className; dialog.showModal();
}));
dialog.addEventListener("click", () => dialog.close());
"""


class Report:
    """Sections of HTML that become one file."""

    def __init__(self, title: str, introduction: str):
        self.title, self.introduction, self.sections = title, introduction, []

    def section(self, title: str, *blocks: str) -> None:
        """Adds a section; the blocks are HTML."""
        self.sections.append((title, "\n".join(blocks)))

    def write(self, path: Path) -> None:
        """The whole file."""
        links = "".join(f'<li><a href="#s{i}">{escape(t)}</a></li>' for i, (t, _) in enumerate(self.sections))
        body = "".join(f'<h2 id="s{i}">{escape(t)}</h2>\n{html}\n' for i, (t, html) in enumerate(self.sections))
        path.write_text(
            f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(self.title)}</title>\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style>\n'
            f"<h1>{escape(self.title)}</h1>\n{self.introduction}\n<nav><ol>{links}</ol></nav>\n{body}"
            f'<dialog aria-label="enlarged picture"><img alt=""></dialog>\n<script>{SCRIPT}</script>\n</html>\n',
            encoding="utf-8",
        )


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>'


def picture(image: Image.Image, caption: str = "", description: str = "") -> str:
    """A picture with a caption, that a click enlarges; small ones without smoothing and loss, large ones as JPEG."""
    small = max(image.size) <= 256
    file = io.BytesIO()
    image.convert("RGB").save(file, *(("PNG",) if small else ("JPEG",)), **({} if small else {"quality": 88}))
    data = base64.b64encode(file.getvalue()).decode()
    alt = escape(description or caption, quote=True)
    source = f"data:image/{'png' if small else 'jpeg'};base64,{data}"
    shown = f'<img src="{source}" alt="{alt}" class="{"pixels" if small else ""}">'
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><button type="button" aria-label="enlarge: {alt}">{shown}</button>{below}</figure>'


def pictures(figures: Sequence[str], kind: str = "") -> str:
    """Figures in a line that wraps."""
    return f'<div class="pictures {kind}">{"".join(figures)}</div>'


def card(heading: str, *blocks: str) -> str:
    """What belongs together; the heading is shown as code."""
    return f'<div class="card"><h3><code>{escape(heading)}</code></h3>{"".join(blocks)}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[object]], kind: str = "") -> str:
    """A table that scrolls where the page is too narrow; of the kind "words" one of text rather than numbers."""

    def cell(value: object) -> str:
        return escape("" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value))

    head = "".join(f"<th>{cell(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{cell(value)}</td>" for value in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def meter(name: str, value: float, floor: float, ceiling: float, ends: tuple[str, str]) -> str:
    """A value on the line between its two bounds, which it may leave a little."""
    room = ceiling - floor
    at = 50 if abs(room) < 1e-6 else 100 * min(1.0, max(0.0, (value - floor) / room))
    return (
        f'<div class="meter"><b>{escape(name)}</b> {value:.3f}<div class="bar"><i style="left:{at:.1f}%"></i></div>'
        f'<div class="ends"><span>{escape(ends[0])} {floor:.3f}</span>'
        f"<span>{escape(ends[1])} {ceiling:.3f}</span></div></div>"
    )
