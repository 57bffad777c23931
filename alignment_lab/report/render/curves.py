"""Which curves a reader wants to see, as plain points. Knows metric names and no drawing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Point = tuple[float, float]  # (step, value)
BOOKKEEPING = ("step", "epoch", "seconds", "total_flos", "num_tokens")
BOOKKEEPING_ENDS = ("runtime", "per_second")
OTHER_PANELS = 6  # metrics that nobody foresaw get a panel each, up to here


@dataclass(frozen=True)
class Panel:
    """One small chart: its title, what its y axis counts, and the metrics drawn in it (an eval_ twin follows each)."""

    title: str
    axis: str
    keys: tuple[str, ...]
    bounded: bool = False  # a share: the axis stays within [0, 1]


PANELS = (
    Panel("Loss", "loss", ("loss",)),
    Panel("Preferred answer ranked higher", "share of pairs", ("rewards/accuracies",), bounded=True),
    Panel("Rewards", "reward", ("rewards/chosen", "rewards/rejected")),
    Panel("Reward margin", "chosen − rejected", ("rewards/margins",)),
    Panel("Token accuracy", "share of tokens", ("mean_token_accuracy",), bounded=True),
    Panel("KL from the reference, as the method estimates it", "nats", ("kl",)),
    Panel("Entropy", "nats per token", ("entropy",)),
    Panel("Log-probability of answers", "nats", ("logps/chosen", "logps/rejected")),
    Panel("Learning rate", "learning rate", ("learning_rate",)),
    Panel("Gradient norm", "norm", ("grad_norm",)),
)


@dataclass(frozen=True)
class Series:
    """One line of a chart: points (step, value), and its place in the palette."""

    label: str
    points: list[Point]
    colour: int
    dash: int = 0
    measured: bool = False  # on held-out rows: drawn as points


@dataclass(frozen=True)
class Curves:
    """One panel with what is to be drawn in it, and remarks for its caption."""

    panel: Panel
    series: list[Series] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def points_of(metrics: Iterable[Mapping[str, Any]], key: str) -> tuple[list[Point], int]:
    """The finite points (step, value) of a metric, and how many were not finite."""
    found = [
        (row["step"], row[key]) for row in metrics if _is_number(row.get(key)) and _is_number(row.get("step"))
    ]
    finite = [(float(step), float(value)) for step, value in found if math.isfinite(value)]
    return finite, len(found) - len(finite)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def thin(points: Sequence[Point], limit: int) -> list[Point]:
    """At most `limit` points: means over bins of equally many neighbours where there are more."""
    size = math.ceil(len(points) / limit)
    bins = [points[start : start + size] for start in range(0, len(points), size or 1)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in bins]


def of_run(metrics: Sequence[Mapping[str, Any]], limit: int = 400) -> list[Curves]:
    """A panel for each thing that the run logged."""
    names = dict.fromkeys(key.removeprefix("eval_") for row in metrics for key in row if _is_number(row[key]))
    drawn = [_panel_of_run(panel, metrics, limit) for panel in [*PANELS, *_others(names)]]
    return [curves for curves in drawn if curves.series]


def _panel_of_run(panel: Panel, metrics: Sequence[Mapping[str, Any]], limit: int) -> Curves:
    curves = Curves(panel)
    for colour, key in enumerate(panel.keys):
        name = key.split("/")[-1] if len(panel.keys) > 1 else "training"
        _add(curves, metrics, key, Series(name, [], colour), limit)
        _add(curves, metrics, f"eval_{key}", Series(name, [], colour, measured=True), limit)
    return curves


def columns(metrics: Iterable[Mapping[str, Any]]) -> dict[str, list[Point]]:
    """The finite points (step, value) of every metric that was logged, in one pass."""
    found: dict[str, list[Point]] = {}
    for row in metrics:
        step = row.get("step")
        if _is_number(step):
            for key, value in row.items():
                if type(value) in (int, float) and math.isfinite(value):
                    found.setdefault(key, []).append((step, value))  # type: ignore[arg-type]
    return found


def panels_of(logged: Iterable[str]) -> list[Panel]:
    """A panel per metric of these names, in training or on held-out rows: curves of several runs lie over each other in it."""
    names = dict.fromkeys(name.removeprefix("eval_") for name in logged)
    panels = [*PANELS, *_others(names)]
    return [
        Panel(_title(panel, key), panel.axis, (key,), panel.bounded)
        for panel in panels
        for key in panel.keys
        if key in names
    ]


def _title(panel: Panel, key: str) -> str:
    return f"{panel.title}: {key.split('/')[-1]}" if len(panel.keys) > 1 else panel.title


COLOURS = 8
DASHES = 4


def place(index: int) -> tuple[int, int]:
    """(colour, dash) of the cell at `index`: colours first, then the same colours dashed."""
    return index % COLOURS, index // COLOURS % DASHES


def _add(curves: Curves, metrics: Sequence[Mapping[str, Any]], key: str, series: Series, limit: int) -> None:
    points, lost = points_of(metrics, key)
    limit = (
        max(12, limit // 4) if series.measured else limit
    )  # a point is drawn, and weighs, more than a bend of a line
    if points:
        curves.series.append(
            Series(series.label, thin(points, limit), series.colour, series.dash, series.measured)
        )
    if len(points) > limit:
        _remark(
            curves,
            f"{'Points' if series.measured else 'Lines'} are means over up to {math.ceil(len(points) / limit)} logged values.",
        )
    if lost:
        _remark(curves, f"{series.label}: {lost} {'value was' if lost == 1 else 'values were'} not finite.")


def _remark(curves: Curves, remark: str) -> None:
    if remark not in curves.remarks:
        curves.remarks.append(remark)


def _others(names: Iterable[str]) -> list[Panel]:
    known = {key for panel in PANELS for key in panel.keys} | set(BOOKKEEPING)
    others = [name for name in names if name not in known and not name.endswith(BOOKKEEPING_ENDS)]
    return [Panel(name, name.split("/")[-1], (name,)) for name in others[:OTHER_PANELS]]
