"""Charts as inline SVG. matplotlib draws, the page's style sheet colors: one drawing serves light and dark.

Knows points and colors, and not what a metric means. Imports matplotlib when it draws the first chart.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from .curves import COLORS, Chart, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Placeholders that `_use_style_sheet_colors` replaces by the variables of the style sheet.
INK, FAINT, GRID, PAPER = "#010203", "#010204", "#010205", "#010206"
SERIES = [f"#0102{16 + color:02x}" for color in range(COLORS)]
RC: Any = {
    "svg.fonttype": "none",  # text stays text: small, and set in the reader's own font
    "text.parse_math": False,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.titlesize": 10,
}


def draw_chart(chart: Chart) -> Markup:
    """One small chart: lines are training, points are held-out rows."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    with _style():
        figure, axes = _figure(4.5, 2.6)
        for series in chart.series:
            _plot(axes, series)
        axes.set_xlabel("step")
        axes.set_ylabel(chart.panel.axis)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(_format_tick))
        if chart.panel.bounded:
            low, high = axes.get_ylim()
            axes.set_ylim(max(-0.02, low), min(1.02, high))
        return to_svg(figure, chart.panel.title)


def _format_tick(y: float, position: int | None) -> str:
    return f"{y:,.0f}" if abs(y) >= 10_000 else f"{y:.6g}"


def _plot(axes: Axes, series: Series) -> None:
    xs, ys = zip(*series.points, strict=True)
    color = SERIES[series.color]
    if series.held_out:
        axes.plot(xs, ys, "o", color=color, markersize=5, linestyle=(0, (1, 2)), linewidth=1, zorder=3)
    else:
        axes.plot(xs, ys, color=color, linewidth=1.5, linestyle="-", marker="." if len(xs) == 1 else "")


@contextmanager
def figure_in_style(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """An empty chart of so many inches, for `to_svg` inside of the block."""
    with _style():
        yield _figure(width, height)


def _style() -> AbstractContextManager[None]:
    from matplotlib import rc_context

    return rc_context({**RC, "svg.hashsalt": "alignment_lab"})


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    return figure, axes


def to_svg(figure: Figure, title: str) -> Markup:
    """The chart as an inline element whose colors are those of the page's style sheet."""
    buffer = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that matplotlib's font lacks is set by the browser
        if engine := figure.get_layout_engine():
            engine.execute(figure)
        figure.set_layout_engine("none")  # which would draw everything twice, and lay it out both times
        figure.savefig(buffer, format="svg", metadata=metadata)
    return Markup(_use_style_sheet_colors(_to_inline(buffer.getvalue(), title)))


def _to_inline(svg: str, title: str) -> str:
    """The SVG element without prologue, namespaces, metadata, and ids that would clash within one page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.S)
    box = re.search(r'viewBox="[^"]*"', svg)
    opening = f'<svg {box.group() if box else ""} role="img" aria-label="{escape(title)}">'
    svg = re.sub(r"<svg[^>]*>", opening, svg, count=1)
    svg = re.sub(r' id="[a-z0-9]+(\.[a-z]+)?_\d+"', "", svg)
    svg = re.sub(r"<style type=\"text/css\">.*?</style>", "", svg, flags=re.S)
    coordinates = r' (?:d|x|y|transform)="[^"]*"'
    svg = re.sub(coordinates, lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match.group()), svg, flags=re.S)
    return re.sub(r"\s*\n\s*", "\n", svg)


def _use_style_sheet_colors(svg: str) -> str:
    for color, placeholder in enumerate(SERIES):
        svg = svg.replace(placeholder, f"var(--series-{color})")
    for placeholder, name in {INK: "soft", FAINT: "axis", GRID: "line", PAPER: "paper"}.items():
        svg = svg.replace(placeholder, f"var(--{name})")
    return svg
