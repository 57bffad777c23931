"""An evaluation in the terminal, and as report.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...config.metrics import EVAL, METRICS, metric
from ..study.evaluations import EvaluationRecord
from .formatting import ABSENT, clip, format_measured, format_number, wrap_name
from .template import write_page
from .terminal import show

NAME_WIDTH, CELL_WIDTH = 24, 26  # columns of a metric's name and of a model's cells in the terminal
LISTING_LIMIT = 60_000  # characters
HOW_TO_READ = (
    "Brackets hold the 95% interval for other prompts like these; rows of one prompt count as one draw. "
    "All models are measured on the same prompts."
)
PAIRED = (
    "Δ: the difference from the first model, prompt by prompt, with the 95% interval of the difference; * "
    "where p is below 0.05, not corrected for the number of differences."
)


def show_evaluation(record: EvaluationRecord, console: Console, page: Path) -> None:
    """Print the metrics of every model, with their differences from the first, and where the page is."""
    if not record.metrics:
        show(
            Text(f"No figures: what the measures wrote is named in {page.with_name('report.json')}"), console
        )
        return
    beside = max(1, (console.width - NAME_WIDTH) // (CELL_WIDTH + 2))
    for start in range(0, len(record.models), beside):
        show(_table(record, record.models[start : start + beside]), console)
    for note in (HOW_TO_READ, *([PAIRED] if record.differences else [])):
        show(Text(note, "dim"), console)
    show(Text(f"Page: {page}"), console, soft_wrap=True)


def _table(record: EvaluationRecord, models: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric", overflow="fold", width=NAME_WIDTH)
    for model in models:
        table.add_column(clip(model["name"], 60), justify="right", overflow="fold", width=CELL_WIDTH)
    for name in record.metrics:
        cells = [_cell(record, model, name) for model in models]
        table.add_row(Text("\n".join(wrap_name(name, NAME_WIDTH))), *map(Text, cells))
    return table


def _cell(record: EvaluationRecord, model: Mapping[str, Any], name: str) -> str:
    value = format_measured(model["metrics"].get(name))
    change = record.differences.get(model["name"], {}).get(name)
    return f"{value}\nΔ {format_change(change)}" if change and is_change(change) else value


def is_change(change: Mapping[str, Any]) -> bool:
    """Whether any prompt has another value: else there is nothing to say of a difference."""
    return bool(change["value"]) or change["ci95"] is not None


def format_change(change: Mapping[str, Any]) -> str:
    """`+0.05 [0.01, 0.09]*`: a difference, its interval, and whether it is more than noise."""
    sign = "+" if change["value"] > 0 else ""
    star = "*" if change.get("p") is not None and change["p"] < 0.05 else ""
    measured = {"value": change["value"], "ci95": change["ci95"]}
    return f"{sign}{format_measured(measured)}{star}"  # type: ignore[arg-type]


def write_evaluation_page(path: Path, record: EvaluationRecord) -> Path:
    """Write report.html of an evaluation, and return its path."""
    context = {
        "name": record.name,
        "record": record,
        "state": record.state.get("state", "finished"),
        "error": record.state.get("error"),
        "rows": [_metric_row(record, name) for name in record.metrics],
        "tables": _tables(record),
        "prompts": _prompts(record),
        "notes": [f"{model['name']}: {note}" for model in record.models for note in model.get("notes", [])],
        "how_to_read": HOW_TO_READ,
        "paired": PAIRED if record.differences else "",
        "models": [_model_facts(model) for model in record.models],
        "provenance": clip(yaml.safe_dump(dict(record.provenance), sort_keys=False), LISTING_LIMIT)
        if record.provenance
        else "",
    }
    return write_page(path, "evaluation.html.jinja", context)


def _metric_row(record: EvaluationRecord, name: str) -> dict[str, Any]:
    label = metric(name).label if name.removeprefix(EVAL) in METRICS else ""
    return {
        "name": name,
        "label": label if label != name else "",
        "cells": [
            {
                "value": model["metrics"].get(name),
                "change": format_change(change)
                if (change := record.differences.get(model["name"], {}).get(name)) and is_change(change)
                else "",
            }
            for model in record.models
        ],
    }


def _model_facts(model: Mapping[str, Any]) -> dict[str, str]:
    step = model.get("step")
    facts = {
        "model": model["name"],
        "what": f"{model['kind']}{f', step {step}' if step else ''}",
        "method": model.get("method"),
        "measured from": model.get("reference"),
        "seconds": format_number(sum((model.get("seconds") or {}).values())),
    }
    return {name: ABSENT if value is None else str(value) for name, value in facts.items()}


ANSWERS = "The first answers"  # a table of texts, which is shown by prompt


def _tables(record: EvaluationRecord) -> list[dict[str, Any]]:
    """The tables of all models, those of one title together; a cell is a text, or an estimate."""
    titles = dict.fromkeys(title for model in record.models for title in model.get("tables", {}))
    found = []
    for title in titles:
        rows = [
            {"model": model["name"], **row}
            for model in record.models
            for row in model.get("tables", {}).get(title, [])
        ]
        if title != ANSWERS and rows:
            columns = list(dict.fromkeys(column for row in rows for column in row))
            found.append({"title": title, "columns": columns, "rows": rows})
    return found


def _prompts(record: EvaluationRecord) -> list[dict[str, Any]]:
    """The first answers by prompt, one model beside the other."""
    by_prompt: dict[str, list[dict[str, str]]] = {}
    for model in record.models:
        for row in model.get("tables", {}).get(ANSWERS, []):
            by_prompt.setdefault(row["prompt"], []).append({"model": model["name"], "answer": row["answer"]})
    return [{"prompt": prompt, "answers": answers} for prompt, answers in by_prompt.items()]
