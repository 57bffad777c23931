"""results.png: TRL's seconds over the lab's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .cases import CASES, PEERS

COLORS = {"tuned": "#2a6f97", "shipped": "#b08968"}
Result = dict[str, Any]


def draw(pieces: dict[str, Any], path: Path) -> None:
    """Draw a panel for the cases and the sweep, and two for the grid; nothing where nothing was measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    costs = {
        name: piece["figures"]["ratios"]
        for name, piece in sorted(pieces.items())
        if name.partition(" ")[0] in CASES
    }
    costs |= {
        name: piece["figures"]["ratios"]
        for name, piece in sorted(pieces.items())
        if name.partition(" ")[0] == "sweep"
    }
    grid = next(
        (piece["figures"] for name, piece in sorted(pieces.items()) if name.partition(" ")[0] == "grid"), None
    )
    panels = [lambda axes: _draw_ratios(axes, costs)] * bool(costs) + (
        [lambda axes: _draw_lengths(axes, grid), lambda axes: _draw_rows(axes, grid)] if grid else []
    )
    if not panels:
        return
    figure, all_axes = pyplot.subplots(
        1, len(panels), figsize=(5.5 * len(panels), 4), squeeze=False, layout="constrained"
    )
    for panel, axes in zip(panels, all_axes[0], strict=True):
        panel(axes)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _draw_ratios(axes: Any, costs: dict[str, Result]) -> None:
    """Median of the paired ratios, whiskers from the lowest to the highest."""
    height = 0.38
    for number, peer in enumerate(PEERS):
        positions = [position for position, ratios in enumerate(costs.values()) if peer in ratios]
        summaries = [ratios[peer]["seconds"] for ratios in costs.values() if peer in ratios]
        medians = [summary["median"] for summary in summaries]
        ranges = [
            [summary["median"] - summary["low"] for summary in summaries],
            [summary["high"] - summary["median"] for summary in summaries],
        ]
        bar_positions = [position + (number - 0.5) * height for position in positions]
        axes.barh(
            bar_positions,
            medians,
            height,
            xerr=ranges,
            color=COLORS[peer],
            label=f"TRL {peer}",
            error_kw={"lw": 1},
        )
    axes.set_yticks(range(len(costs)), list(costs))
    axes.invert_yaxis()
    axes.axvline(1, color="black", lw=1)
    axes.set_xlabel("seconds of TRL / seconds of the lab")
    axes.legend(frameon=False)


def _draw_lengths(axes: Any, grid: Result) -> None:
    """A line for every answer length."""
    for answer in sorted({point["answer"] for point in grid["lengths"]}):
        points = [point for point in grid["lengths"] if point["answer"] == answer]
        axes.plot(
            [point["prompt"] for point in points],
            [_median_ratio(point) for point in points],
            "o-",
            label=f"answers of {answer} tokens",
        )
    _label_axes(axes, "tokens of the prompt", grid["lengths"], "prompt")


def _draw_rows(axes: Any, grid: Result) -> None:
    points = grid["batches"]
    label = f"prompt and answers of {points[0]['prompt']} tokens"
    axes.plot(
        [point["rows"] for point in points], [_median_ratio(point) for point in points], "o-", label=label
    )
    _label_axes(axes, "rows of a step", points, "rows")


def _median_ratio(point: Result) -> float:
    ratio: float = point["ratios"]["seconds"]["median"]
    return ratio


def _label_axes(axes: Any, x_label: str, points: list[Result], key: str) -> None:
    axes.axhline(1, color="black", lw=1)
    axes.set_ylim(bottom=0)
    axes.set_xscale("log", base=2)
    ticks = sorted({point[key] for point in points})
    axes.set_xticks(ticks, list(map(str, ticks)))
    axes.set_xlabel(x_label)
    axes.set_ylabel("DPO: seconds of TRL tuned / of the lab")
    axes.legend(frameon=False)
