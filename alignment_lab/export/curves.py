"""The curves of a run as one small picture for its model card."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from ..report.render.curves import Chart, run_charts
from ..runtime.run_directory import RunDirectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = "curves.png"
MAX_PANELS, COLUMNS = 4, 2  # the first panels that the run's page shows
TITLE_WIDTH = 44  # characters of a line
MIN_STEPS = 2  # one logged step is no curve


def write_curves(run: RunDirectory, folder: Path) -> list[str]:
    """Draw the run's first charts into `folder`; gives their titles, none where nothing was logged."""
    rows = run.metrics()
    charts = run_charts(rows, limit=200)[:MAX_PANELS] if len(rows) >= MIN_STEPS else []
    if charts:
        (folder / CURVES).write_bytes(_draw(charts))
    return [chart.panel.title for chart in charts]


def _draw(charts: list[Chart]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = -(-len(charts) // COLUMNS)
    columns = min(COLUMNS, len(charts))
    figure = Figure(figsize=(4.5 * columns, 2.6 * lines), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for number, chart in enumerate(charts, 1):
        _plot(figure.add_subplot(lines, columns, number), chart)
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=110, metadata={"Software": None})
    return picture.getvalue()


def _plot(axes: Axes, chart: Chart) -> None:
    for series in chart.series:
        xs, ys = zip(*series.points, strict=True)
        label = f"{series.label}, held out" if series.held_out else series.label
        style = "o:" if series.held_out else "-"
        axes.plot(xs, ys, style, color=f"C{series.color}", linewidth=1.3, markersize=4, label=label)
    axes.set_title(fill(chart.panel.title, TITLE_WIDTH), fontsize=10)
    axes.set_xlabel("step")
    axes.set_ylabel(chart.panel.axis)
    axes.grid(alpha=0.3)
    if len(chart.series) > 1:
        axes.legend(fontsize=8)
