"""A study as files for others: report.json, report.csv with a row per cell, report.md. Chooses columns; judges nothing."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from ..study import comparability, drift
from ..study.configurations import Configuration, counted
from ..study.runs import RunRecord
from ..study.stats import Estimate
from ..study.study import Study, Verdict
from . import text, words

COSTS = ("steps", "tokens", "tokens_per_second", "peak_memory_gb")


def summary(study: Study) -> dict[str, Any]:
    """report.json of a comparison."""
    return {
        "warnings": study.warnings,
        "notes": comparability.notes(study.cells),
        "findings": words.findings(study),
        "headline": study.headline,
        "reference": {"configuration": study.reference.label, "picked_as_best": study.picked}
        if study.reference
        else None,
        "configurations": [_configuration(study, one) for one in study.configurations],
        "cells": [_cell(cell) for cell in study.cells],
    }


def _configuration(study: Study, one: Configuration) -> dict[str, Any]:
    measured = {name: mean for name in study.metrics if (mean := one.mean(name))}
    return {
        "configuration": one.label,
        "settings": one.settings,
        "seeds": list(one.seeds),
        "cells": [cell.run.path.name for cell in one.cells],
        "metrics": {name: _estimate(mean) for name, mean in measured.items()},
        "differences": {
            name: _verdict(found[one.label]) for name, found in study.verdicts.items() if one.label in found
        },
    }


def _estimate(one: Estimate) -> dict[str, Any]:
    return {"mean": one.value, "ci95": list(one.ci95) if one.ci95 else None, "seeds": one.n}


def _verdict(one: Verdict) -> dict[str, Any]:
    by_seed = (
        {"difference": one.difference.value, "ci95": one.difference.ci95, "n": one.difference.n}
        if one.difference
        else {}
    )
    by_row = (
        {"difference": one.rows.value, "ci95": one.rows.ci95, "n": one.rows.n, "p_holm": one.rows_p}
        if one.rows
        else None
    )
    return {
        "verdict": one.word,
        "how": one.how,
        **by_seed,
        "p_holm": one.p,
        "by_row": by_row and {"verdict": one.rows_word, **by_row},
    }


def _cell(cell: RunRecord) -> dict[str, Any]:
    return {
        "cell": cell.run.path.name,
        "label": cell.label,
        "id": cell.state.get("id"),
        "state": cell.status,
        "counted": counted(cell),
        "error": cell.error,
        "differs": cell.differs,
        "metrics": cell.metrics,
        "cost": {
            "seconds": cell.seconds,
            **{key: cell.report.get(key) for key in COSTS},
            "hardware": drift.hardware(cell),
        },
    }


def as_csv(study: Study) -> str:
    """report.csv: a row per cell; of each metric before, after, the interval's ends and n."""
    keys = next((list(cell.differs) for cell in study.cells if cell.differs), [])
    labels = {id(cell): one.label for one in study.configurations for cell in one.cells}
    parts = [f"{name} {part}" for name in study.metrics for part in ("before", "after", "low", "high", "n")]
    said = io.StringIO()
    writer = csv.writer(said, lineterminator="\n")
    writer.writerow(
        ["cell", "configuration", "seed", "state", "reason", *keys, *parts, "seconds", *COSTS, "hardware"]
    )
    for cell in study.cells:
        settings = [cell.differs.get(key) for key in keys]
        costs = [cell.seconds.get("total"), *(cell.report.get(key) for key in COSTS), drift.hardware(cell)]
        numbers = [number for name in study.metrics for number in _numbers(cell, name)]
        seed = (cell.spec.get("training") or {}).get("seed")
        row = [
            cell.run.path.name,
            labels.get(id(cell)),
            seed,
            cell.status,
            cell.error,
            *settings,
            *numbers,
            *costs,
        ]
        writer.writerow([_inert(value) for value in row])
    return said.getvalue()


def _inert(value: Any) -> Any:
    """Text that a spreadsheet takes for no formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _numbers(cell: RunRecord, name: str) -> list[Any]:
    after = cell.after(name)
    low, high = text.interval_of(after) or (None, None)
    return [text.value_of(cell.before(name)), text.value_of(after), low, high, text.n_of(after)]


def as_markdown(study: Study, title: str) -> str:
    """report.md: warnings, findings, a table of configurations, what was left out, notes."""
    shown = [name for name in study.metrics if name in text.FIRST_METRICS] or study.metrics[:6]
    heading = [
        "configuration",
        "seeds",
        *shown,
        *([f"{study.headline}, beside the reference", "verdict"] if study.reference else []),
    ]
    rows = [_markdown_row(study, one, shown) for one in study.configurations]
    warned = [f"> **Warning.** {_escaped(said)}\n" for said in study.warnings]
    missing = [
        f"- {_escaped(cell.label)} ({cell.status}): {_escaped(text.clip(why))}"
        for cell, why in words.left_out(study.cells)
    ]
    parts = [
        f"# {_escaped(title)}\n",
        *warned,
        *(f"{_escaped(said)}\n" for said in words.findings(study)),
        _table(heading, rows),
        *(["Left out of every mean:\n", "\n".join(missing) + "\n"] if missing else []),
        "\n".join(f"- {_escaped(note)}" for note in comparability.notes(study.cells)) + "\n",
        "Cost:\n",
        _table(["cell", "time", "tokens/s", "peak GB", "on"], map(_cost, study.cells)),
    ]
    return "\n".join(parts)


def _markdown_row(study: Study, one: Configuration, shown: Sequence[str]) -> list[str]:
    seeds = ", ".join(str(seed) for seed in one.seeds) or text.ABSENT
    beside = []
    if study.reference is not None:
        found = study.verdicts.get(study.headline or "", {}).get(one.label)
        told = (
            "reference"
            if one is study.reference
            else f"{words.verdict(found)} {words.p_value(found.p if found else None)}".strip()
        )
        beside = [words.difference(found.difference if found else None), told]
    return [one.label, seeds, *(text.with_interval(one.shown(name)) for name in shown), *beside]


def _cost(cell: RunRecord) -> list[str]:
    numbers = [
        text.number(cell.report.get("tokens_per_second")),
        text.gigabytes(cell.report.get("peak_memory_gb")),
    ]
    return [cell.label, text.duration(cell.seconds.get("total")), *numbers, drift.hardware(cell)]


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(_escaped(value) for value in line) + " |" for line in lines) + "\n"


def _escaped(value: str) -> str:
    """Text that Markdown takes for text; an underscore within a word is one already."""
    plain = (
        text.CONTROL.sub("", value)
        .replace("\n", " ")
        .replace("\\", "\\\\")
        .replace("<", "&lt;")
        .replace("](", "]\\(")
    )
    return plain.replace("|", "\\|").replace("`", "\\`").replace("*", "\\*")
