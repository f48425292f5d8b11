"""Line charts as SVG, drawn in the page's own colours so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float] | tuple[float, float, str]]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 250, 46, 12, 14, 40


def chart(title: str, x_name: str, lines: Mapping[str, Points], levels: Mapping[str, float] | None = None) -> str:
    """Lines through points, and dashed levels that they are to be compared with.

    Args:
        lines: {name: (x, y) points}, at most four; a point may have a label, (x, y, label).
        levels: {name: y}.
    """
    levels = levels or {}
    xs = [point[0] for points in lines.values() for point in points]
    ys = [point[1] for points in lines.values() for point in points] + list(levels.values())
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1e-9)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def at(x: float, y: float) -> str:
        return (
            f"{LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT):.1f},"
            f"{HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM):.1f}"
        )

    def segment(a: str, b: str, style: str) -> str:
        (x1, y1), (x2, y2) = a.split(","), b.split(",")
        return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" {style}/>'

    def label(point: str, text: str, dx: int, dy: int, anchor: str) -> str:
        x, y = map(float, point.split(","))
        return f'<text x="{x + dx:.1f}" y="{y + dy:.1f}" text-anchor="{anchor}">{escape(text)}</text>'

    parts = [segment(at(x_low, y), at(x_high, y), 'class="grid"') for y in y_ticks]
    parts += [label(at(x_low, y), f"{y:g}", -6, 4, "end") for y in y_ticks]
    parts += [label(at(x, y_low), f"{x:g}", 0, 16, "middle") for x in x_ticks if x_low <= x <= x_high]
    parts += [label(at(x_high, y_low), x_name, 0, 33, "end")]
    names: list[tuple[str, str, str]] = []
    for i, (name, points) in enumerate(lines.items()):
        colour = f"var(--s{i % 4})"
        path = " ".join(at(x, y) for x, y, *_ in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, y, *labels in points:
            cx, cy = at(x, y).split(",")
            tip = f"<title>{escape(name)}: {x:g}, {y:.4g}</title>"
            parts.append(f'<circle cx="{cx}" cy="{cy}" r="3.2" fill="{colour}">{tip}</circle>')
            parts += [label(at(x, y), text, 6, -5, "start") for text in labels]
        names.append((name, colour, "solid"))
    for i, (name, y) in enumerate(levels.items()):
        colour = f"var(--s{i % 4})"
        style = f'stroke="{colour}" stroke-dasharray="5 4"'
        parts.append(segment(at(x_low, y), at(x_high, y), style))
        names.append((name, colour, "dashed"))
    legend = "".join(
        f'<span><i style="border-color:{colour};border-top-style:{style}"></i>{escape(name)}</span>'
        for name, colour, style in names
    )
    return (
        f'<div class="chart"><h3>{escape(title)}</h3><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title, quote=True)}">{"".join(parts)}</svg><div class="legend">{legend}</div></div>'
    )


def charts(*drawn: str) -> str:
    """Charts side by side where there is room."""
    return f'<div class="charts">{"".join(drawn)}</div>'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from at most `low` to at least `high`."""
    room = max(high - low, 1e-6, 1e-6 * abs(high))
    rough = room / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]
