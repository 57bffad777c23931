"""Reward against KL as a chart: a point for each evaluated model, a band for each method."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from ..study.frontier import KL, Frontier, band
from .curves import palette
from .svg import INK, SERIES, figure_in_style, to_svg

CAPTION = (
    "A point is an evaluated model: filled, what a run came to; open, a checkpoint. Across: the KL "
    "divergence from the reference of answers that the model writes, in nats per answer, by sampling. Up: a "
    "reward that no method trained on. A line is the mean over seeds at equal KL, by linear interpolation "
    "along each seed's points, its band the 95% interval over seeds."
)
STEPS = "Betas and checkpoints of a method lie along its curve."


def frontier_chart(frontier: Frontier) -> dict[str, Any]:
    """What the page's template shows."""
    remarks = [CAPTION, STEPS]
    if frontier.left_out:
        remarks.append(f"{frontier.left_out} evaluations on other rows or with other settings are left out.")
    return {
        "title": f"{frontier.label[:1].upper()}{frontier.label[1:]} against KL",
        "svg": draw_frontier(frontier),
        "legend": [
            {"label": curve.label, "color": palette(index)[0]} for index, curve in enumerate(frontier.curves)
        ],
        "remarks": remarks,
        "sentences": frontier.sentences,
    }


def draw_frontier(frontier: Frontier) -> Markup:
    """The chart, for light and dark pages alike."""
    with figure_in_style(7.2, 4.0) as (figure, axes):
        for index, curve in enumerate(frontier.curves):
            color = SERIES[palette(index)[0]]
            if found := band(curve):
                if found.low is not None and found.high is not None:
                    axes.fill_between(found.kl, found.low, found.high, color=color, alpha=0.16, linewidth=0)
                axes.plot(found.kl, found.mean, color=color, linewidth=1.8)
            points = [point for of_seed in curve.by_seed.values() for point in of_seed]
            for is_final in (False, True):
                shown = [point for point in points if (point.step is None) is is_final]
                axes.plot(
                    [point.kl for point in shown],
                    [point.gold for point in shown],
                    "o",
                    color=color,
                    markersize=6 if is_final else 3.6,
                    markerfacecolor=color if is_final else "none",
                )
        start = next((curve.start for curve in frontier.curves if curve.start is not None), None)
        if start is not None:
            axes.plot([0], [start], "D", color=SERIES[6], markersize=5)
            axes.annotate(
                "before training",
                (0, start),
                textcoords="offset points",
                xytext=(7, -9),
                fontsize=9,
                color=INK,
            )
        axes.set_xlabel("KL from the reference, nats per answer")
        axes.set_ylabel(frontier.label)
        return to_svg(figure, f"{frontier.label} against KL")


def frontier_json(frontier: Frontier) -> dict[str, Any]:
    """What report.json says of it."""
    return {
        "gold": frontier.gold,
        "kl": KL,
        "findings": frontier.sentences,
        "left_out": frontier.left_out,
        "curves": [
            {
                "configuration": curve.label,
                "before_training": curve.start,
                "points": [
                    {"run": point.label, "seed": seed, "step": point.step, "kl": point.kl, "gold": point.gold}
                    for seed, points in curve.by_seed.items()
                    for point in points
                ],
            }
            for curve in frontier.curves
        ],
    }
