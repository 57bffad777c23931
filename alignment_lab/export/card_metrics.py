"""The figures of a model card: what the run measured, and what evaluations measured since."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..report.render.formatting import format_measured, format_number
from ..report.study.evaluations import evaluations_of
from ..report.study.values import n_of_metric, ordered_metrics
from ..runtime.anonymity import anonymize
from ..runtime.run_directory import RunDirectory

HOW_TO_READ = (
    "Brackets hold the 95% interval of one number over its n {of}; they do not include what another training "
    "seed would change."
)
COLUMNS = ("metric", "before", "after", "n")


def heldout_section(report: Mapping[str, Any]) -> Iterator[str]:
    """The metrics of report.json, before and after training."""
    if metrics := report.get("metrics"):
        yield "## Held-out rows, before and after"
        yield table(COLUMNS, _rows(metrics))
        yield HOW_TO_READ.format(of="held-out rows")


def evaluation_sections(run: RunDirectory, step: int | None) -> Iterator[str]:
    """Each evaluation of this model since, with what a reader of its figures must know."""
    entries = list(evaluations_of(run))
    initial = {entry["id"]: entry["model"]["metrics"] for entry in entries if entry["model"]["is_initial"]}
    for entry in entries:
        model = entry["model"]
        if model["is_initial"] or model["step"] != step or not model["metrics"]:
            continue
        before = initial.get(entry["id"], {})
        metrics = {
            name: {"before": before.get(name), "after": after} for name, after in model["metrics"].items()
        }
        yield f"## Evaluated: {', '.join(entry['measures'])}"
        yield table(COLUMNS, _rows(metrics))
        if model["notes"]:
            yield bullets(anonymize(note) for note in model["notes"])
        yield HOW_TO_READ.format(of="prompts")


def _rows(metrics: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            name,
            format_measured(metrics[name].get("before")),
            format_measured(metrics[name].get("after")),
            format_number(n_of_metric(metrics[name])),
        )
        for name in ordered_metrics(metrics)
    ]


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {line}" for line in lines)


def table(heading: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table with a line for each row."""
    lines = [heading, tuple("---" for _ in heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
