"""report.html of a run: one self-contained page. Chooses and words what the template shows; refuses to draw (draw.py)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...runtime.files import utc_now, write_atomic
from ...runtime.run_directory import RunDirectory
from ..study import comparability, runs
from ..study.runs import RunRecord
from . import curves, draw, text

SAMPLES = 20  # of a run; the first ones
ANSWER_LIMIT = 2_000
LISTING_LIMIT = 60_000
NUMBER_NAMES = {
    "answers/correct": "answers correct",
    "eval_rewards/accuracies": "preferred ranked higher",
    "eval_mean_token_accuracy": "token accuracy",
    "answers/words": "words per answer",
}


def write_page(run: RunDirectory) -> Path:
    """Write report.html of one run, whatever its state, and give its path."""
    cell = runs.load_record(run)
    rows = run.samples()
    context = {
        "cell": cell,
        "name": cell.report.get("name") or cell.spec.get("name") or run.path.name,
        "facts": _facts(cell),
        "numbers": _headline_numbers(cell),
        "charts": [_chart(drawn) for drawn in curves.of_run(run.metrics())],
        "metrics": _metric_rows(cell),
        "notes": comparability.notes([cell]),
        "samples": rows[:SAMPLES],
        "sample_count": len(rows),
        "counts": _counts(cell),
        "times": {phase: text.duration(seconds) for phase, seconds in cell.seconds.items()},
        "config": _listing(
            {key: value for key, value in cell.spec.items() if key not in ("hydra", "defaults")}
        ),
        "provenance": _listing(cell.provenance),
    }
    return write(run.page_file, "run.html.jinja", context)


def write(path: Path, template: str, context: Mapping[str, Any]) -> Path:
    """Render a template to `path`; what a model wrote is never taken for HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "text": text,
        "shown": runs.shown,
        "written": utc_now(),
        "answer_limit": ANSWER_LIMIT,
    }
    write_atomic(path, environment.get_template(template).render(context))
    return path


def _facts(cell: RunRecord) -> dict[str, str]:
    """The line under the title: what was trained on what, and where."""
    spec, report = cell.spec, cell.report
    named = {key: report.get(key) or (spec.get(key) or {}).get("name") for key in ("method", "model", "data")}
    kept = {"run": cell.state.get("id"), "host": cell.state.get("host"), "started": cell.state.get("started")}
    attempts = cell.state.get("attempts")
    return {key: str(value) for key, value in {**named, **kept, "attempts": attempts}.items() if value}


def _headline_numbers(cell: RunRecord) -> list[dict[str, Any]]:
    """The cards: shares as percentages before and after, then the cost."""
    shares = [_card(cell, name) for name in NUMBER_NAMES if name in cell.metrics]
    report = cell.report
    costs = [
        ("time", text.duration(cell.seconds.get("total")), f"{text.number(report.get('steps'))} steps"),
        ("peak memory", f"{text.gigabytes(report.get('peak_memory_gb'))} GB", ""),
        (
            "tokens per second",
            text.number(report.get("tokens_per_second")),
            f"{text.number(report.get('tokens'))} tokens",
        ),
    ]
    return shares + [
        {"name": name, "before": "", "after": value, "detail": detail}
        for name, value, detail in costs
        if report
    ]


def _card(cell: RunRecord, name: str) -> dict[str, Any]:
    before, after = cell.before(name), cell.after(name)
    say = text.percent_of if text.is_share(name) else text.point
    interval = text.percent_interval(after) if text.is_share(name) else text.interval(after)
    n = text.n_of_metric(cell.metrics[name])
    first = "" if text.value_of(before) is None else say(before)
    return {
        "name": NUMBER_NAMES[name],
        "before": first,
        "after": say(after),
        "detail": ", ".join(
            part for part in (f"95% CI {interval}" if interval else "", f"n={n}" if n else "") if part
        ),
    }


def _metric_rows(cell: RunRecord) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "before": cell.before(name),
            "after": cell.after(name),
            "n": text.n_of_metric(cell.metrics[name]),
            "bars": _bars(cell, name) if text.is_share(name) else [],
        }
        for name in text.ordered_metrics(cell.metrics)
    ]


def _bars(cell: RunRecord, name: str) -> list[dict[str, Any]]:
    """The share before and after on a line from 0 to 100, for the little drawing in the metrics table."""
    estimates = {"before": cell.before(name), "after": cell.after(name)}
    return [
        {
            "when": when,
            "at": 100 * value,
            "bounds": [100 * min(1, max(0, bound)) for bound in text.interval_of(estimate) or (value, value)],
        }
        for when, estimate in estimates.items()
        if (value := text.value_of(estimate)) is not None and 0 <= value <= 1
    ]


def _counts(cell: RunRecord) -> dict[str, str]:
    rows = cell.report.get("rows") or {}
    dropped = rows.get("dropped")
    reasons = dropped.items() if isinstance(dropped, Mapping) else [("", dropped)] if dropped else []
    named = {
        "training rows": rows.get("train"),
        "available": rows.get("available"),
        "held-out rows": rows.get("eval"),
        "truncated": rows.get("truncated"),
    }
    counts = {name: text.number(count) for name, count in named.items() if count is not None}
    return counts | {f"dropped: {reason}".rstrip(": "): text.number(count) for reason, count in reasons}


def _chart(drawn: curves.Curves) -> dict[str, Any]:
    return {
        "title": drawn.panel.title,
        "svg": draw.curves_svg(drawn),
        "legend": [series for series in drawn.series if not series.measured] if len(drawn.series) > 1 else [],
        "held_out": any(series.measured for series in drawn.series),
        "remarks": drawn.remarks,
    }


def _listing(content: Mapping[str, Any]) -> str:
    if not content:
        return ""
    return text.clip(
        yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=110), LISTING_LIMIT
    )
