"""Which curves a page shows, as plain points. Draws nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ...config.metrics import EVAL, IMPLICIT, METRICS, metric
from ..study.runs import LoggedRow
from ..study.values import is_finite_number, is_number

Point = tuple[float, float]  # (step, value)
BOOKKEEPING = ("step", "epoch", "seconds", "total_flos", "num_tokens")
BOOKKEEPING_SUFFIXES = ("runtime", "per_second")
MAX_OTHER_PANELS = 6  # metrics without a panel of their own in PANELS get one each, up to here
COLORS, DASHES = 8, 4  # of the palette


@dataclass(frozen=True)
class Panel:
    """One small chart: its title, what its y axis counts, and its metrics (with their eval_ twins)."""

    title: str
    axis: str
    metrics: tuple[str, ...]
    bounded: bool = False  # a share: the axis stays within [0, 1]


def _metric_panel(name: str, axis: str | None = None) -> Panel:
    """A panel of one metric, with its label as the title."""
    row = metric(name)
    title = row.label[:1].upper() + row.label[1:] if name in METRICS else name
    return Panel(title, axis or name.split("/")[-1], (name,), row.is_share)


PANELS = (
    _metric_panel("loss"),
    _metric_panel(f"{IMPLICIT}accuracies", "share of pairs"),
    _metric_panel("rewards/accuracies", "share of pairs"),
    Panel("Implicit rewards, without beta", "nats", (f"{IMPLICIT}chosen", f"{IMPLICIT}rejected")),
    _metric_panel(f"{IMPLICIT}margins", "nats"),
    Panel("Rewards", "reward", ("rewards/chosen", "rewards/rejected")),
    _metric_panel("rewards/margins", "chosen − rejected"),
    _metric_panel("mean_token_accuracy", "share of tokens"),
    _metric_panel("kl", "nats"),
    Panel("Entropy", "nats per token", ("entropy",)),
    Panel("Log-probability of answers", "nats", ("logps/chosen", "logps/rejected")),
    Panel("Learning rate", "learning rate", ("learning_rate",)),
    Panel("Gradient norm", "norm", ("grad_norm",)),
)


@dataclass(frozen=True)
class Series:
    """One line of a chart, or the points of held-out rows."""

    label: str
    points: list[Point]
    color: int  # index into the palette
    held_out: bool = False


@dataclass(frozen=True)
class Chart:
    """A panel with the series to draw in it, and remarks for its caption."""

    panel: Panel
    series: list[Series] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def add(self, rows: Iterable[LoggedRow], name: str, series: Series, limit: int) -> None:
        """Add a metric as a series of at most `limit` points; remark on what was averaged or left out."""
        points, dropped = finite_points(rows, name)
        if series.held_out:
            limit = max(12, limit // 4)  # a point takes more space than a bend of a line
        if points:
            downsampled = downsample(points, limit)
            self.series.append(Series(series.label, downsampled, series.color, series.held_out))
        if len(points) > limit:
            kind, count = "Points" if series.held_out else "Lines", math.ceil(len(points) / limit)
            self._remark(f"{kind} are means over up to {count} logged values.")
        if dropped:
            values = "value was" if dropped == 1 else "values were"
            self._remark(f"{series.label}: {dropped} {values} not finite.")

    def _remark(self, remark: str) -> None:
        if remark not in self.remarks:
            self.remarks.append(remark)


def finite_points(rows: Iterable[LoggedRow], name: str) -> tuple[list[Point], int]:
    """The finite points (step, value) of a metric, and the number of those that are not."""
    points = [
        (row["step"], row[name]) for row in rows if is_number(row.get(name)) and is_number(row.get("step"))
    ]
    finite = [(float(step), float(value)) for step, value in points if math.isfinite(value)]
    return finite, len(points) - len(finite)


def points_by_metric(rows: Iterable[LoggedRow]) -> dict[str, list[Point]]:
    """The finite points (step, value) of every logged metric, in one pass."""
    points: dict[str, list[Point]] = {}
    for row in rows:
        step = row.get("step")
        if is_number(step):
            for name, value in row.items():
                if is_finite_number(value):
                    points.setdefault(name, []).append((step, value))
    return points


def downsample(points: Sequence[Point], limit: int) -> list[Point]:
    """At most `limit` points: means over bins of equally many neighbors where there are more."""
    size = math.ceil(len(points) / limit)
    bins = [points[start : start + size] for start in range(0, len(points), size or 1)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in bins]


def run_charts(rows: Sequence[LoggedRow], limit: int = 400) -> list[Chart]:
    """A chart for every panel of which the run logged something."""
    names = dict.fromkeys(name.removeprefix(EVAL) for row in rows for name in row if is_number(row[name]))
    charts = [_run_chart(panel, rows, limit) for panel in [*PANELS, *_other_panels(names)]]
    return [chart for chart in charts if chart.series]


def _run_chart(panel: Panel, rows: Sequence[LoggedRow], limit: int) -> Chart:
    chart = Chart(panel)
    for color, name in enumerate(panel.metrics):
        label = name.split("/")[-1] if len(panel.metrics) > 1 else "training"
        chart.add(rows, name, Series(label, [], color), limit)
        chart.add(rows, f"{EVAL}{name}", Series(label, [], color, held_out=True), limit)
    return chart


def comparison_panels(logged: Iterable[str]) -> list[Panel]:
    """A panel for each single metric of these names: curves of several runs are drawn over each other."""
    names = dict.fromkeys(name.removeprefix(EVAL) for name in logged)
    return [
        Panel(_single_title(panel, name), panel.axis, (name,), panel.bounded)
        for panel in [*PANELS, *_other_panels(names)]
        for name in panel.metrics
        if name in names
    ]


def _single_title(panel: Panel, name: str) -> str:
    return f"{panel.title}: {name.split('/')[-1]}" if len(panel.metrics) > 1 else panel.title


def palette(index: int) -> tuple[int, int]:
    """(color, dash) of the configuration at `index`: all colors first, then the same colors dashed."""
    return index % COLORS, index // COLORS % DASHES


def _other_panels(names: Mapping[str, None]) -> list[Panel]:
    """Panels of logged metrics that PANELS lacks."""
    shown = {name for panel in PANELS for name in panel.metrics} | set(BOOKKEEPING)
    others = [name for name in names if name not in shown and not name.endswith(BOOKKEEPING_SUFFIXES)]
    return [_metric_panel(name) for name in others[:MAX_OTHER_PANELS]]
