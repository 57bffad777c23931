"""Readers of the values in a report.json, `{"value": 0.7, "ci95": [0.59, 0.81], "n": 64}` before and after.

They judge and format nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict, TypeGuard

from ...config.metrics import EVAL, METRICS, SUMMARY_METRICS


class MetricValue(TypedDict, total=False):
    """One measured value with its 95% interval."""

    value: float | None
    ci95: Sequence[float] | None
    n: int | None
    prompts: int | None  # of the n rows
    unit: str  # what n counts: "rows" (also where it is absent) or "seeds"


class BeforeAfter(TypedDict, total=False):
    """A metric before and after training; None where it was not measured."""

    before: MetricValue | None
    after: MetricValue | None


ReportedValue = MetricValue | float | None


def value_of(measured: ReportedValue) -> float | None:
    """The value itself; None where nothing was measured."""
    return measured.get("value") if isinstance(measured, Mapping) else measured


def interval_of(measured: ReportedValue) -> tuple[float, float] | None:
    """The 95% interval, or None where there is none."""
    bounds = measured.get("ci95") if isinstance(measured, Mapping) else None
    return (bounds[0], bounds[1]) if bounds and None not in bounds else None


def n_of(measured: ReportedValue) -> int | None:
    """How many rows or seeds the value rests on, or None where that was not recorded."""
    return measured.get("n") if isinstance(measured, Mapping) else None


def n_of_metric(metric: BeforeAfter) -> int | None:
    """The n of a metric after training, else of the one before."""
    return n_of(metric.get("after")) or n_of(metric.get("before"))


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a JSON value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite_number(value: object) -> TypeGuard[int | float]:
    """Whether a JSON value is a number, and neither NaN nor infinite."""
    return is_number(value) and math.isfinite(value)


def ordered_metrics(names: Iterable[str]) -> list[str]:
    """The names in the order of the table of metrics, then those that it lacks as they came."""
    order = {name: rank for rank, name in enumerate(METRICS)}
    return sorted(names, key=lambda name: order.get(name.removeprefix(EVAL), len(order)))


def summary_metrics(names: Iterable[str]) -> list[str]:
    """Those of the names for which a table without room for every metric has a column."""
    return [name for name in names if name.removeprefix(EVAL) in SUMMARY_METRICS]
