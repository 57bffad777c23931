"""Run directories as records: their files as plain data, and the settings that tell them apart.

A file that cannot be read becomes an error of its record, never an exception.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from ...runtime.files import read_json
from ...runtime.run_directory import YAML_LOADER, RunDirectory
from .settings import (
    DATA_CONTENT,
    MISSING,
    canonical,
    compared_settings,
    format_label,
    short_names,
    varied_keys,
)
from .values import BeforeAfter, MetricValue, is_number

LoggedRow = Mapping[str, Any]  # of metrics.jsonl or samples.jsonl


@dataclass(frozen=True)
class RunRecord:
    """One run of a comparison: its files as plain data, and the settings that tell it from the others."""

    run: RunDirectory
    varied: dict[str, object] = field(default_factory=dict)  # by dotted key, those that differ among the runs
    label: str = ""
    spec: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    read_error: str | None = None  # which file cannot be read, and why

    @property
    def status(self) -> str:
        """queued, running, interrupted, finished, failed, or unreadable."""
        return "unreadable" if self.read_error else self.state.get("state", "queued")

    @property
    def error(self) -> str | None:
        """Why the run failed or cannot be read."""
        return self.read_error or self.state.get("error")

    @property
    def has_results(self) -> bool:
        """Whether the run counts in means: it finished, and reported metrics."""
        return self.status == "finished" and bool(self.metrics)

    @property
    def seed(self) -> object:
        """training.seed, or None where the spec has none."""
        return (self.spec.get("training") or {}).get("seed")

    @property
    def metrics(self) -> dict[str, BeforeAfter]:
        """Every reported metric by its name; empty while the run has no report."""
        metrics: Mapping[str, Any] = self.report.get("metrics") or {}
        return {
            name: BeforeAfter(**values) for name, values in metrics.items() if isinstance(values, Mapping)
        }

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase, and their total; empty while the run has no report."""
        return self.report.get("seconds") or {}

    @property
    def attempts(self) -> int | None:
        """How many attempts it took so far; None where it never started."""
        count = self.state.get("attempts")
        return count if isinstance(count, int) else None

    @property
    def content_hashes(self) -> dict[str, str]:
        """Content hashes by what was hashed: model, data, tokenizer."""
        return self.provenance.get("content") or {}

    @cached_property
    def logged_steps(self) -> list[LoggedRow]:
        """The rows of metrics.jsonl."""
        return _read_rows(self.run.metrics)

    @cached_property
    def samples(self) -> list[LoggedRow]:
        """The rows of samples.jsonl: the answers to held-out prompts."""
        return _read_rows(self.run.samples)

    @cached_property
    def row_scores(self) -> Mapping[str, Any]:
        """row_scores.json: the scores of single held-out rows; empty where it cannot be read."""
        try:
            scores = self.run.row_scores()
        except (OSError, ValueError):
            return {}
        return scores if isinstance(scores, Mapping) else {}

    def before(self, metric: str) -> MetricValue | None:
        """The metric before training, or None."""
        return self.metrics.get(metric, BeforeAfter()).get("before")

    def after(self, metric: str) -> MetricValue | None:
        """The metric after training, or None."""
        return self.metrics.get(metric, BeforeAfter()).get("after")


def _read_rows(reader: Callable[[], list[dict[str, Any]]]) -> list[LoggedRow]:
    """The JSON objects of a file; none where it cannot be read."""
    try:
        return [row for row in reader() if isinstance(row, dict)]
    except (OSError, UnicodeDecodeError):
        return []


def _read_spec(run: RunDirectory) -> Any:
    return yaml.load(run.spec_file.read_text(), YAML_LOADER) if run.spec_file.exists() else {}


def load_record(run: RunDirectory) -> RunRecord:
    """Read one run. A file that cannot be read becomes `read_error`."""
    readers: dict[str, Callable[[], Any]] = {
        "spec": lambda: _read_spec(run),
        "state": run.state,
        "report": run.report,
        "provenance": lambda: read_json(run.provenance_file),
    }
    files: dict[str, Any] = {}
    read_error = None
    for name, reader in readers.items():
        try:
            content = reader() or {}
            files[name] = content if isinstance(content, dict) else {}
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            read_error = read_error or f"The {name} of {run.path} cannot be read: {reason}"
    return RunRecord(run, label=run.path.name, read_error=read_error, **files)


def find_runs(folder: Path) -> list[RunDirectory]:
    """Every run in `folder`, those included that have a spec but never started.

    Directories inside a run, and hidden ones, are not searched.
    """
    paths = []
    for path, folders, files in os.walk(folder):
        if "run.json" in files or "spec.yaml" in files:
            paths.append(Path(path))
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]
    return [RunDirectory(path) for path in sorted(paths)]


def load_records(runs: Iterable[RunDirectory]) -> list[RunRecord]:
    """The runs as records, labeled by the settings that differ among them and sorted by these."""
    records = [load_record(run) for run in runs]
    keys = varied_keys(record.spec for record in records)
    settings = [compared_settings(record.spec) for record in records]
    if _data_content_differs(records, keys):
        keys = [*keys, DATA_CONTENT]
        for record, values in zip(records, settings, strict=True):
            values[DATA_CONTENT] = (record.content_hashes.get("data") or MISSING)[:8]
    records = [
        replace(record, varied={key: values.get(key, MISSING) for key in keys} if record.spec else {})
        for record, values in zip(records, settings, strict=True)
    ]
    return _add_labels(sorted(records, key=_sort_key), short_names(keys))


def all_varied_keys(records: Iterable[RunRecord]) -> list[str]:
    """The keys of the settings that differ among the records of one comparison."""
    return next((list(record.varied) for record in records if record.varied), [])


def _data_content_differs(records: Iterable[RunRecord], keys: Sequence[str]) -> bool:
    """Whether equal data settings led to other rows: such runs are never one configuration."""
    hashes: dict[str, set[str]] = {}
    for record in records:
        if "data" in record.content_hashes:
            settings = compared_settings(record.spec)
            data_settings = {key: settings.get(key) for key in keys if key.startswith("data.")}
            hashes.setdefault(canonical(data_settings), set()).add(record.content_hashes["data"])
    return any(len(distinct) > 1 for distinct in hashes.values())


def _sort_key(record: RunRecord) -> tuple[Any, ...]:
    values = tuple(_sortable(value) for value in record.varied.values())
    return (not record.varied, values, str(record.run.path))


def _sortable(value: object) -> tuple[int, float, str]:
    """Numbers in front of texts."""
    return (0, value, "") if is_number(value) else (1, 0.0, str(value))


def _add_labels(records: list[RunRecord], names: Mapping[str, str]) -> list[RunRecord]:
    """Label by the varied settings; runs with equal labels get their folder's name as well."""
    labels = [format_label(record.varied, names) for record in records]
    return [
        replace(record, label=label if labels.count(label) == 1 else f"{label} ({record.run.path.name})")
        if label
        else record
        for record, label in zip(records, labels, strict=True)
    ]
