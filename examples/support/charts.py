"""Line charts by matplotlib, as SVG inside an HTML `<img>`, in colours for light and dark pages."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

import matplotlib
from matplotlib.figure import Figure

Points = Sequence[tuple[float, float] | tuple[float, float, str]]
INK = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), "#808080")
STYLE = INK | {
    "font.size": 9,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": matplotlib.cycler(color=["#3b82c4", "#d0702a", "#8a8580", "#4a9a58"]),
    "legend.frameon": False,
}


def chart(title: str, x_name: str, lines: Mapping[str, Points], levels: Mapping[str, float] | None = None) -> str:
    """Lines through points, and dashed levels to compare them with; as an HTML image.

    Args:
        lines: {name: (x, y) points}; a point may have a label, (x, y, label).
        levels: {name: y}.
    """
    file = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.8, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.set(title=title, xlabel=x_name)
        for name, points in lines.items():
            axes.plot([x for x, *_ in points], [y for _, y, *_ in points], "o-", markersize=4, label=name)
            for x, y, *labels in points:
                for text in labels:
                    axes.annotate(text, (x, y), (4, 4), textcoords="offset points")
        for i, (name, y) in enumerate((levels or {}).items()):
            axes.axhline(y, color=f"C{i + len(lines)}", linestyle="--", label=name)
        axes.legend()
        figure.savefig(file, format="svg", transparent=True)
    data = base64.b64encode(file.getvalue()).decode()
    described = escape(f"{title}: {', '.join([*lines, *(levels or {})])}", quote=True)
    return f'<img class="chart" src="data:image/svg+xml;base64,{data}" alt="{described}">'
