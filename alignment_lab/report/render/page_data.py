"""The data that the comparison's page holds for its script: rounded, downsampled, and of bounded size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...config.metrics import Scale
from ...config.metrics import metric as metric_row
from ..study.comparison import Comparison, Verdict
from ..study.configurations import Configuration
from ..study.drift import drift_path
from ..study.hardware import describe_hardware
from ..study.runs import RunRecord, all_varied_keys
from ..study.settings import MISSING, SEED, canonical, format_setting, short_names
from ..study.values import (
    MetricValue,
    ReportedValue,
    interval_of,
    is_number,
    n_of,
    summary_metrics,
    value_of,
)
from . import words
from .curves import Panel, Point, comparison_panels, downsample, palette, points_by_metric
from .formatting import format_duration, format_interval, format_value
from .page_samples import page_prompts

MAX_POINTS = 24_000  # of all curves on a page, shared by its runs
PHASES = ("load", "reference", "train", "evaluate", "generate", "save")


def page_data(comparison: Comparison, links: Sequence[str | None]) -> dict[str, Any]:
    """Everything that the script shows. `links`: the page of each run, relative to the comparison's."""
    records = comparison.records
    indices = {
        id(record): index for index, each in enumerate(comparison.configurations) for record in each.records
    }
    logged = [points_by_metric(record.logged_steps) for record in records]
    panels = comparison_panels(name for points in logged for name in points)
    keys = [key for key in all_varied_keys(records) if key != SEED]
    names = short_names(keys)
    reference = comparison.reference
    return {
        "headline": comparison.headline,
        "reference": comparison.configurations.index(reference) if reference else None,
        "referenceIsBest": comparison.reference_is_best,
        "metrics": _metrics(comparison.metrics),
        "keys": [{"name": names[key], "values": _setting_values(comparison, key)} for key in keys],
        "panels": [{"title": panel.title, "axis": panel.axis, "bounded": panel.bounded} for panel in panels],
        "configurations": [
            _configuration(comparison, index, keys) for index in range(len(comparison.configurations))
        ],
        "runs": [
            _run(record, indices[id(record)], link) | _curves(record, points, panels, len(records))
            for record, link, points in zip(records, links, logged, strict=True)
        ],
        "prompts": page_prompts(records),
    }


def _metrics(names: Sequence[str]) -> list[dict[str, Any]]:
    summary = summary_metrics(names)
    return [
        {
            "name": name,
            "inSummary": name in summary,
            "isShare": metric_row(name).is_share,
            "dependsOnMethod": metric_row(name).scale is Scale.method,
        }
        for name in names
    ]


def _setting_values(comparison: Comparison, key: str) -> list[str]:
    """The values of a setting that some run has, numbers in order, as a person would type them."""
    values = {
        canonical(value): value
        for each in comparison.configurations
        if (value := each.settings.get(key, MISSING)) != MISSING
    }
    numbers = [value for value in values.values() if is_number(value)]
    ordered = sorted(numbers) if len(numbers) == len(values) else list(values.values())
    return [format_setting(value) for value in ordered]


def _configuration(comparison: Comparison, index: int, keys: Sequence[str]) -> dict[str, Any]:
    configuration = comparison.configurations[index]
    label = configuration.label
    color, dash = palette(index)
    settings = [configuration.settings.get(key, MISSING) for key in keys]
    return {
        "label": label,
        "color": color,
        "dash": dash,
        "settings": [None if value == MISSING else format_setting(value) for value in settings],
        "seeds": [format_setting(seed) for seed in configuration.seeds],
        "metrics": {
            name: value for name in comparison.metrics if (value := _configuration_value(configuration, name))
        },
        "verdicts": {
            name: _verdict(verdicts[label])
            for name, verdicts in comparison.verdicts.items()
            if label in verdicts
        },
    }


def _configuration_value(configuration: Configuration, name: str) -> dict[str, Any] | None:
    measured = configuration.measured(name)
    if measured is None:
        return None
    before = configuration.mean(name, "before")
    return _value(measured, measured["unit"], before.value if before else None)


def _run_value(record: RunRecord, name: str) -> dict[str, Any] | None:
    after = record.after(name)
    if after is None or not is_number(value_of(after)):
        return None
    return _value(after, "rows", value_of(record.before(name)))


def _value(after: MetricValue, unit: str, before: float | None) -> dict[str, Any]:
    """A metric after training, formatted and as numbers, and before."""
    value = value_of(after)
    return {
        "text": format_value(after),
        "interval": format_interval(after),
        "n": n_of(after),
        "unit": unit,
        "value": None if value is None else rounded(value),
        "bounds": _bounds(after),
        "before": None if before is None else rounded(before),
    }


def _bounds(measured: ReportedValue) -> list[float | None] | None:
    bounds = interval_of(measured)
    return [rounded(bound) for bound in bounds] if bounds else None


def _verdict(verdict: Verdict) -> dict[str, Any]:
    by_row = verdict.row_outcome and {
        "outcome": verdict.row_outcome,
        "difference": words.format_difference(verdict.row_difference),
        "p": words.format_p(verdict.row_p),
        "n": verdict.row_difference.n if verdict.row_difference else None,
    }
    return {
        "outcome": verdict.outcome,
        "text": words.format_outcome(verdict),
        "basis": f"{verdict.basis}, {words.format_scope(verdict.difference)}"
        if verdict.difference
        else verdict.basis,
        "p": words.format_p(verdict.p),
        "difference": words.format_difference(verdict.difference),
        "value": rounded(verdict.difference.value) if verdict.difference else None,
        "byRow": by_row,
    }


def _curves(
    record: RunRecord, points: Mapping[str, Sequence[Point]], panels: Sequence[Panel], run_count: int
) -> dict[str, Any]:
    """Lines of training and points of held-out rows for each panel, and the drift: at most `MAX_POINTS`."""
    limit = max(12, min(200, MAX_POINTS // (run_count * max(1, len(panels)))))
    held_out_limit = max(12, limit // 4)
    names = [panel.metrics[0] for panel in panels]
    return {
        "curves": [_rounded_points(points.get(name, []), limit) for name in names],
        "heldOut": [_rounded_points(points.get(f"eval_{name}", []), held_out_limit) for name in names],
        "drift": _rounded_points(drift_path(record), limit),
    }


def _rounded_points(points: Sequence[Point], limit: int) -> list[list[float | None]]:
    return [[rounded(x), rounded(y)] for x, y in downsample(points, limit)]


def _run(record: RunRecord, configuration: int, link: str | None) -> dict[str, Any]:
    costs = {
        "total": record.seconds.get("total"),
        "speed": record.report.get("tokens_per_second"),
        "memory": record.report.get("peak_memory_gb"),
        "attempts": record.attempts,
    }
    return {
        "label": record.label,
        "name": record.run.path.name,
        "configuration": configuration,
        "seed": format_setting(record.seed),
        "state": record.status,
        "hasResults": record.has_results,
        "link": link,
        "metrics": {name: value for name in record.metrics if (value := _run_value(record, name))},
        "costs": {name: rounded(value) for name, value in costs.items() if is_number(value)},
        "phases": [rounded(record.seconds.get(phase, 0.0)) for phase in PHASES],
        "time": format_duration(record.seconds.get("total")),
        "hardware": describe_hardware(record),
    }


def rounded(value: float) -> float | None:
    """Six significant digits; None for NaN and infinity, which JSON lacks."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
