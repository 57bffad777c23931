"""Charts as inline SVG: matplotlib draws, the page's style sheet colours, so that one drawing serves light and dark.

Knows points and colours; refuses to know what a metric means. Imports matplotlib on the first chart only.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from .curves import COLOURS, Curves, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID, PAPER = (
    "#010203",
    "#010204",
    "#010205",
    "#010206",
)  # stand-ins that `_coloured` turns into the style sheet's colours
STANDINS = [f"#0102{16 + colour:02x}" for colour in range(COLOURS)]
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
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


def curves_svg(curves: Curves) -> Markup:
    """One small chart of curves: lines are training, points are held-out rows."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    with _style():
        figure, axes = _figure(4.5, 2.6)
        for series in curves.series:
            _line(axes, series)
        axes.set_xlabel("step")
        axes.set_ylabel(curves.panel.axis)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda y, _: f"{y:,.0f}" if abs(y) >= 10_000 else f"{y:.6g}")
        )
        if curves.panel.bounded:
            low, high = axes.get_ylim()
            axes.set_ylim(max(-0.02, low), min(1.02, high))
        return _svg(figure, curves.panel.title)


def _line(axes: Axes, series: Series) -> None:
    xs, ys = zip(*series.points, strict=True)
    colour = STANDINS[series.colour]
    if series.measured:
        axes.plot(xs, ys, "o", color=colour, markersize=5, linestyle=(0, (1, 2)), linewidth=1, zorder=3)
    else:
        marker = "." if len(xs) == 1 else ""
        axes.plot(xs, ys, color=colour, linewidth=1.5, linestyle=DASHES[series.dash], marker=marker)


def _style() -> Any:
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


def _svg(figure: Figure, title: str) -> Markup:
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that matplotlib's font lacks is set by the browser
        figure.savefig(
            buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    return Markup(_coloured(_inlined(buffer.getvalue(), title)))


def _inlined(svg: str, title: str) -> str:
    """The SVG element alone: without prologue, namespaces, metadata, and the ids that would clash within one page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.S)
    box = re.search(r'viewBox="[^"]*"', svg)
    svg = re.sub(
        r"<svg[^>]*>",
        f'<svg {box.group() if box else ""} role="img" aria-label="{escape(title)}">',
        svg,
        count=1,
    )
    svg = re.sub(r' id="[a-z0-9]+(\.[a-z]+)?_\d+"', "", svg)
    svg = re.sub(r"<style type=\"text/css\">.*?</style>", "", svg, flags=re.S)
    svg = re.sub(
        r' (?:d|x|y|transform)="[^"]*"',
        lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found.group()),
        svg,
        flags=re.S,
    )
    return re.sub(r"\s*\n\s*", "\n", svg)


def _coloured(svg: str) -> str:
    for colour, standin in enumerate(STANDINS):
        svg = svg.replace(standin, f"var(--series-{colour})")
    for standin, name in {INK: "soft", FAINT: "axis", GRID: "line", PAPER: "paper"}.items():
        svg = svg.replace(standin, f"var(--{name})")
    return svg
