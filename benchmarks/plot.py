"""results.png: what TRL takes, in times what the lab takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .cases import CASES, PEERS

COLOURS = {"tuned": "#2a6f97", "shipped": "#b08968"}
Result = dict[str, Any]


def draw(pieces: dict[str, Any], path: Path) -> None:
    """A panel for the cases and the sweep, and two for the grid where it was measured; nothing where there is nothing to draw."""
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
    panels = [lambda axes: _bars(axes, costs)] * bool(costs) + (
        [lambda axes: _lengths(axes, grid), lambda axes: _rows(axes, grid)] if grid else []
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


def _bars(axes: Any, costs: dict[str, Result]) -> None:
    """Median of the paired ratios, whiskers from the lowest to the highest."""
    height = 0.38
    for number, peer in enumerate(PEERS):
        places = [place for place, ratios in enumerate(costs.values()) if peer in ratios]
        found = [ratios[peer]["seconds"] for ratios in costs.values() if peer in ratios]
        middle = [one["median"] for one in found]
        reach = [
            [one["median"] - one["low"] for one in found],
            [one["high"] - one["median"] for one in found],
        ]
        where = [place + (number - 0.5) * height for place in places]
        axes.barh(
            where, middle, height, xerr=reach, color=COLOURS[peer], label=f"TRL {peer}", error_kw={"lw": 1}
        )
    axes.set_yticks(range(len(costs)), list(costs))
    axes.invert_yaxis()
    axes.axvline(1, color="black", lw=1)
    axes.set_xlabel("seconds of TRL / seconds of the lab")
    axes.legend(frameon=False)


def _lengths(axes: Any, grid: Result) -> None:
    """A line for every answer length."""
    for answer in sorted({point["answer"] for point in grid["lengths"]}):
        points = [point for point in grid["lengths"] if point["answer"] == answer]
        axes.plot(
            [point["prompt"] for point in points],
            [_ratio(point) for point in points],
            "o-",
            label=f"answers of {answer} tokens",
        )
    _labels(axes, "tokens of the prompt", grid["lengths"], "prompt")


def _rows(axes: Any, grid: Result) -> None:
    points = grid["batches"]
    label = f"prompt and answers of {points[0]['prompt']} tokens"
    axes.plot([point["rows"] for point in points], [_ratio(point) for point in points], "o-", label=label)
    _labels(axes, "rows of a step", points, "rows")


def _ratio(point: Result) -> float:
    found: float = point["ratios"]["seconds"]["median"]
    return found


def _labels(axes: Any, below: str, points: list[Result], key: str) -> None:
    axes.axhline(1, color="black", lw=1)
    axes.set_ylim(bottom=0)
    axes.set_xscale("log", base=2)
    places = sorted({point[key] for point in points})
    axes.set_xticks(places, list(map(str, places)))
    axes.set_xlabel(below)
    axes.set_ylabel("DPO: seconds of TRL tuned / of the lab")
    axes.legend(frameon=False)
