"""A comparison as files: report.json, report.csv with a row per run, report.md. Judges nothing."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from ..study import comparability
from ..study.comparison import Comparison, Verdict
from ..study.configurations import Configuration
from ..study.hardware import describe_hardware
from ..study.runs import RunRecord, all_varied_keys
from ..study.stats import Estimate
from ..study.values import interval_of, n_of, summary_metrics, value_of
from . import words
from .formatting import (
    ABSENT,
    CONTROL,
    clip,
    format_duration,
    format_gigabytes,
    format_measured,
    format_number,
)
from .frontier import frontier_json

# keys of a run's report.json
COSTS = ("steps", "repeated_steps", "tokens", "tokens_per_second", "peak_memory_gb", "device_hours")


def to_json(comparison: Comparison) -> dict[str, Any]:
    """report.json of a comparison."""
    reference = comparison.reference and {
        "configuration": comparison.reference.label,
        "picked_as_best": comparison.reference_is_best,
    }
    return {
        "warnings": comparison.warnings,
        "notes": comparability.notes(comparison.records),
        "findings": words.findings(comparison),
        "headline": comparison.headline,
        "reward_against_kl": frontier_json(comparison.frontier) if comparison.frontier else None,
        "reference": reference,
        "configurations": [_configuration(comparison, each) for each in comparison.configurations],
        "cells": [_run(record) for record in comparison.records],
    }


def _configuration(comparison: Comparison, configuration: Configuration) -> dict[str, Any]:
    means = {name: mean for name in comparison.metrics if (mean := configuration.mean(name))}
    label = configuration.label
    return {
        "configuration": label,
        "settings": configuration.settings,
        "seeds": configuration.seeds,
        "cells": [record.run.path.name for record in configuration.records],
        "metrics": {
            name: {"mean": mean.value, "ci95": mean.ci95, "seeds": mean.n, "prompts": mean.prompts}
            for name, mean in means.items()
        },
        "differences": {
            name: _verdict(verdicts[label])
            for name, verdicts in comparison.verdicts.items()
            if label in verdicts
        },
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    by_row = verdict.row_difference and {
        "verdict": verdict.row_outcome,
        **_difference(verdict.row_difference),
        "p_holm": verdict.row_p,
    }
    return {
        "verdict": verdict.outcome,
        "how": verdict.basis,
        "over": words.format_scope(verdict.difference) if verdict.difference else None,
        **(_difference(verdict.difference) if verdict.difference else {}),
        "p_holm": verdict.p,
        "by_row": by_row,
    }


def _difference(estimate: Estimate) -> dict[str, Any]:
    return {
        "difference": estimate.value,
        "ci95": estimate.ci95,
        "n": estimate.n,
        "prompts": estimate.prompts,
    }


def _run(record: RunRecord) -> dict[str, Any]:
    return {
        "cell": record.run.path.name,
        "label": record.label,
        "id": record.state.get("id"),
        "state": record.status,
        "counted": record.has_results,
        "error": record.error,
        "differs": record.varied,
        "metrics": record.metrics,
        "cost": {
            "attempts": record.attempts,
            "seconds": record.seconds,
            **{key: record.report.get(key) for key in COSTS},
            "hardware": describe_hardware(record),
        },
    }


def to_csv(comparison: Comparison) -> str:
    """report.csv: a row per run; of each metric before, after, the ends of the interval, and n."""
    keys = all_varied_keys(comparison.records)
    labels = {id(record): each.label for each in comparison.configurations for record in each.records}
    parts = ("before", "after", "low", "high", "n")
    metric_columns = [f"{name} {part}" for name in comparison.metrics for part in parts]
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    run_columns = ["cell", "configuration", "seed", "state", "reason"]
    writer.writerow([*run_columns, *keys, *metric_columns, "attempts", "seconds", *COSTS, "hardware"])
    for record in comparison.records:
        row = [
            record.run.path.name,
            labels.get(id(record)),
            record.seed,
            record.status,
            record.error,
            *(record.varied.get(key) for key in keys),
            *(value for name in comparison.metrics for value in _metric_values(record, name)),
            record.attempts,
            record.seconds.get("total"),
            *(record.report.get(key) for key in COSTS),
            describe_hardware(record),
        ]
        writer.writerow([_escape_formula(value) for value in row])
    return output.getvalue()


def _metric_values(record: RunRecord, name: str) -> list[float | None]:
    after = record.after(name)
    low, high = interval_of(after) or (None, None)
    return [value_of(record.before(name)), value_of(after), low, high, n_of(after)]


def _escape_formula(value: object) -> object:
    """Keep a spreadsheet from taking text for a formula."""
    is_formula = isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r")
    return f"'{value}" if is_formula else value


def to_markdown(comparison: Comparison, title: str) -> str:
    """report.md: warnings, findings, a table of configurations, what was left out, notes, cost."""
    metrics = summary_metrics(comparison.metrics) or comparison.metrics[:6]
    verdict_headings = [f"{comparison.headline} vs. the reference", "verdict"] if comparison.reference else []
    rows = [_markdown_row(comparison, each, metrics) for each in comparison.configurations]
    left_out = [
        f"- {_escape(record.label)} ({record.status}): {_escape(clip(reason))}"
        for record, reason in words.left_out(comparison.records)
    ]
    notes = [f"- {_escape(note)}" for note in comparability.notes(comparison.records)]
    parts = [
        f"# {_escape(title)}\n",
        *(f"> **Warning.** {_escape(warning)}\n" for warning in comparison.warnings),
        *(f"{_escape(sentence)}\n" for sentence in words.findings(comparison)),
        _markdown_table(["configuration", "seeds", *metrics, *verdict_headings], rows),
        *(["Left out of every mean:\n", "\n".join(left_out) + "\n"] if left_out else []),
        "\n".join(notes) + "\n",
        "Cost:\n",
        _markdown_table(["run", "time", "tokens/s", "peak GB", "on"], map(_cost_row, comparison.records)),
    ]
    return "\n".join(parts)


def _markdown_row(comparison: Comparison, configuration: Configuration, metrics: Sequence[str]) -> list[str]:
    seeds = ", ".join(map(str, configuration.seeds)) or ABSENT
    row = [configuration.label, seeds, *(format_measured(configuration.measured(name)) for name in metrics)]
    if comparison.reference is None:
        return row
    verdict = comparison.headline_verdicts.get(configuration.label)
    is_reference = configuration is comparison.reference
    outcome = "reference" if is_reference else words.format_verdict(verdict)
    return [*row, words.format_verdict_difference(verdict), outcome]


def _cost_row(record: RunRecord) -> list[str]:
    return [
        record.label,
        format_duration(record.seconds.get("total")),
        format_number(record.report.get("tokens_per_second")),
        format_gigabytes(record.report.get("peak_memory_gb")),
        describe_hardware(record),
    ]


def _markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(_escape(value) for value in line) + " |" for line in lines) + "\n"


def _escape(value: str) -> str:
    """Escape what Markdown would interpret; an underscore within a word is plain text already."""
    text = CONTROL.sub("", value).replace("\n", " ").replace("\\", "\\\\")
    text = text.replace("<", "&lt;").replace("](", "]\\(")
    return text.replace("|", "\\|").replace("`", "\\`").replace("*", "\\*")
