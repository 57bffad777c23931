"""report.html of one run, as a self-contained page: what its template shows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ...config.metrics import EVAL, IMPLICIT, metric
from ...runtime.run_directory import RunDirectory
from ..study import comparability
from ..study.evaluations import evaluations_of, page_of
from ..study.runs import RunRecord, load_record
from ..study.values import MetricValue, interval_of, n_of_metric, ordered_metrics, value_of
from . import curves, svg
from .formatting import (
    clip,
    format_duration,
    format_gigabytes,
    format_interval,
    format_number,
    format_percent,
    format_percent_interval,
    format_value,
)
from .template import write_page

MAX_SAMPLES = 20  # the first ones
LISTING_LIMIT = 60_000  # characters
# The metrics with a card at the top of the page, each with its value before and after.
CARDS = ("answers/correct", f"{IMPLICIT}accuracies", "accuracy", "mean_token_accuracy", "answers/words")
# The shares of held-out pairs whose chosen answer the trained model prefers.
ACCURACIES = (f"{EVAL}{IMPLICIT}accuracies", f"{EVAL}accuracy")


def write_run_page(run: RunDirectory) -> Path:
    """Write report.html of one run, in any state, and return its path."""
    record = load_record(run)
    samples = run.samples()
    settings = {key: value for key, value in record.spec.items() if key not in ("hydra", "defaults")}
    context = {
        "record": record,
        "name": record.report.get("name") or record.spec.get("name") or run.path.name,
        "facts": _facts(record),
        "cards": [*_metric_cards(record), *_cost_cards(record)],
        "charts": [_chart(chart) for chart in curves.run_charts(run.metrics())],
        "metrics": _metric_rows(record),
        "notes": comparability.notes([record]),
        "samples": samples[:MAX_SAMPLES],
        "sample_count": len(samples),
        "shortcuts": _shortcut_rows(record),
        "evaluations": _evaluation_rows(run),
        "counts": _row_counts(record),
        "attempts": _attempt_rows(record),
        "times": {phase: format_duration(seconds) for phase, seconds in record.seconds.items()},
        "config": _listing(settings),
        "provenance": _listing(record.provenance),
    }
    return write_page(run.page_file, "run.html.jinja", context)


def _facts(record: RunRecord) -> dict[str, str]:
    """The line under the title: what was trained on what, and where."""
    spec, report, state = record.spec, record.report, record.state
    choices = {
        group: report.get(group) or (spec.get(group) or {}).get("name")
        for group in ("method", "model", "data")
    }
    origin = {
        "run": state.get("id"),
        "host": state.get("host"),
        "started": state.get("started"),
        "attempts": state.get("attempts"),
    }
    return {key: str(value) for key, value in {**choices, **origin}.items() if value}


def _metric_cards(record: RunRecord) -> list[dict[str, str]]:
    names = sorted(
        (name for name in record.metrics if name.removeprefix(EVAL) in CARDS),
        key=lambda name: CARDS.index(name.removeprefix(EVAL)),
    )
    return [_metric_card(record, name) for name in names]


def _metric_card(record: RunRecord, name: str) -> dict[str, str]:
    row, before, after = metric(name), record.before(name), record.after(name)
    format_one = format_percent if row.is_share else format_value
    interval = (format_percent_interval if row.is_share else format_interval)(after)
    n = n_of_metric(record.metrics[name])
    prompts = (after or {}).get("prompts") or n
    count = f"n={n}" if prompts == n else f"n={n}, of {prompts} prompts"
    details = (f"95% CI {interval}" if interval else "", count if n else "")
    return {
        "name": row.label,
        "before": "" if value_of(before) is None else format_one(before),
        "after": format_one(after),
        "detail": ", ".join(filter(None, details)),
    }


def _cost_cards(record: RunRecord) -> list[dict[str, str]]:
    report = record.report
    if not report:
        return []
    steps, tokens = (format_number(report.get(key)) for key in ("steps", "tokens"))
    repeated = report.get("repeated_steps")
    taken = f"{steps} steps" + (f", {format_number(repeated)} more taken again" if repeated else "")
    if (record.attempts or 1) > 1:
        taken += f", {record.attempts} attempts"
    costs = [
        ("time", format_duration(record.seconds.get("total")), taken),
        ("peak memory", f"{format_gigabytes(report.get('peak_memory_gb'))} GB", ""),
        ("tokens per second", format_number(report.get("tokens_per_second")), f"{tokens} tokens"),
    ]
    return [{"name": name, "before": "", "after": value, "detail": detail} for name, value, detail in costs]


def _attempt_rows(record: RunRecord) -> list[dict[str, str]]:
    """A row for each attempt where there were several: of report.json, else those that ended, of run.json."""
    attempts = record.report.get("attempts") or record.state.get("history") or []
    if (record.attempts or 1) < 2:
        return []
    return [
        {
            "attempt": format_number(each.get("attempt")),
            "started": str(each.get("started") or ""),
            "host": str(each.get("host") or ""),
            "steps": "no step" if each.get("from_step") is None else f"{each['from_step']} to {each['step']}",
            "time": format_duration((each.get("seconds") or {}).get("total")),
            "ended": clip(each.get("error") or ("" if each.get("ended") else "killed"), 200),
        }
        for each in attempts
    ]


def _metric_rows(record: RunRecord) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "before": record.before(name),
            "after": record.after(name),
            "n": n_of_metric(record.metrics[name]),
            "bars": _bars(record, name) if metric(name).is_share else [],
        }
        for name in ordered_metrics(record.metrics)
    ]


def _bars(record: RunRecord, name: str) -> list[dict[str, Any]]:
    """A share before and after on a line from 0 to 100, for the drawing in the table of metrics."""
    return [
        {
            "when": when,
            "position": 100 * value,
            "bounds": [100 * min(1, max(0, bound)) for bound in interval_of(measured) or (value, value)],
        }
        for when, measured in (("before", record.before(name)), ("after", record.after(name)))
        if (value := value_of(measured)) is not None and 0 <= value <= 1
    ]


def _row_counts(record: RunRecord) -> dict[str, str]:
    """How many rows there were, and why some were dropped."""
    rows = record.report.get("rows") or {}
    dropped = rows.get("dropped")
    reasons = dropped.items() if isinstance(dropped, Mapping) else [("", dropped)] if dropped else []
    what = "blocks of texts" if "texts" in rows else "rows"
    counts = {
        f"training {what}": rows.get("train"),
        "of texts": rows.get("texts"),
        "available": rows.get("available"),
        f"held-out {what}": rows.get("eval"),
        "truncated": rows.get("truncated"),
    }
    return {
        **{name: format_number(count) for name, count in counts.items() if count is not None},
        **{f"dropped: {reason}".rstrip(": "): format_number(count) for reason, count in reasons},
    }


def _shortcut_rows(record: RunRecord) -> list[dict[str, str]]:
    """Rules that understand nothing, on the held-out pairs, beneath the run's own accuracy on them."""
    found = record.report.get("shortcuts") or []
    own = [(metric(name).label, after) for name in ACCURACIES if (after := record.after(name))]
    measured = {label: (value, "") for label, value in own} if found else {}
    for each in found:
        value = MetricValue(value=each["share"], ci95=[each["low"], each["high"]], n=each["pairs"])
        measured[each["name"]] = (value, format_number(each["undecided"]))
    return [
        {
            "name": name,
            "share": format_percent(value),
            "interval": format_percent_interval(value),
            "pairs": format_number(value.get("n")),
            "undecided": undecided,
        }
        for name, (value, undecided) in measured.items()
    ]


def _evaluation_rows(run: RunDirectory) -> list[dict[str, Any]]:
    """A row for each evaluation of this run since, of each of its checkpoints: its metrics that mean the same
    everywhere first.
    """
    rows = []
    for entry in evaluations_of(run):
        model = entry["model"]
        step = "before training" if model.get("is_initial") else model.get("step")
        page = page_of(entry)
        rows.append(
            {
                "ended": str(entry.get("ended") or ""),
                "is_final": step is None,
                "of": "the trained model" if step is None else f"step {step}" if model.get("step") else step,
                "measures": ", ".join(entry.get("measures") or []),
                "link": os.path.relpath(page, run.path) if page.exists() else None,
                "where": str(entry.get("path") or ""),
                "metrics": [(name, model["metrics"][name]) for name in ordered_metrics(model["metrics"])],
            }
        )
    return rows


def _chart(chart: curves.Chart) -> dict[str, Any]:
    several = len(chart.series) > 1
    return {
        "title": chart.panel.title,
        "svg": svg.draw_chart(chart),
        "legend": [series for series in chart.series if not series.held_out] if several else [],
        "has_held_out": any(series.held_out for series in chart.series),
        "remarks": chart.remarks,
    }


def _listing(content: Mapping[str, Any]) -> str:
    if not content:
        return ""
    return clip(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=110), LISTING_LIMIT)
