"""Forwards what is added to metrics.jsonl to trackers, each step once, by the names that transformers uses.

Knows files and metric names, and no particular tracker.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config.metrics import EVAL, IMPLICIT
from ..runtime.files import read_jsonl
from ..runtime.redaction import redact
from ..runtime.run_directory import RunDirectory

NO_STEP = -1  # nothing was logged yet
STEP = "train/global_step"  # the x axis of every curve, as in transformers' integrations
SAMPLE_COLUMNS = ("prompt", "expected", "before", "after")
SUMMARY_KEYS = ("steps", "tokens", "tokens_per_second", "peak_memory_gb")  # of report.json


class Tracker:
    """A service that shows metrics of a run. An attempt that resumes the run opens it again."""

    def last_known_step(self) -> int:
        """The last step that it durably has from earlier attempts; NO_STEP where it has none."""
        return NO_STEP

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log one step. A step may come in several consecutive parts, and never again later."""

    def conclude(self, numbers: Mapping[str, Any], samples: list[list[str]], page: Path) -> None:
        """Log the results of a finished run."""

    def close(self, state: str, *, failed: bool) -> None:
        """End this attempt."""


class MetricsForwarder:
    """Reads what was added to metrics.jsonl since the last call, and logs what each tracker lacks."""

    def __init__(self, run: RunDirectory, trackers: Sequence[Tracker]) -> None:
        self.run, self.trackers = run, trackers
        self.known_steps = [NO_STEP for _ in trackers]
        self.offset: int | None = None  # in metrics.jsonl; None before `start`

    def start(self) -> None:
        """Ask each tracker for its last step, and log what it lacks of earlier attempts.

        The run has already removed from metrics.jsonl the steps that it will repeat.
        """
        self.known_steps = [tracker.last_known_step() for tracker in self.trackers]
        self.offset = 0
        self.forward()

    def forward(self) -> None:
        """Log the rows that were added."""
        for row in self._new_rows():
            for tracker, known_step in zip(self.trackers, self.known_steps, strict=True):
                if row["step"] > known_step:
                    tracker.log(row["step"], to_tracker_metrics(row))

    def conclude(self, numbers: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], page: Path) -> None:
        """Log the results of a finished run."""
        self.forward()
        table = [[redact(_as_text(row.get(name))) for name in SAMPLE_COLUMNS] for row in samples]
        for tracker in self.trackers:
            tracker.conclude(numbers, table, page)

    def close(self, state: str, *, failed: bool) -> None:
        """Close all trackers."""
        for tracker in self.trackers:
            tracker.close(state, failed=failed)

    def _new_rows(self) -> Iterator[dict[str, Any]]:
        """The complete lines behind the offset; a half-written one waits for its end."""
        if self.offset is None or not self.run.metrics_file.exists():
            return
        with self.run.metrics_file.open("rb") as file:
            file.seek(self.offset)
            complete, newline, _ = file.read().rpartition(b"\n")
        self.offset += len(complete) + len(newline)
        for line in complete.split(b"\n"):
            if line.strip():
                yield json.loads(line)


def last_logged_step(run: RunDirectory) -> int:
    """The last step in metrics.jsonl."""
    return max((row["step"] for row in read_jsonl(run.metrics_file)), default=NO_STEP)


def to_tracker_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row by the names of transformers' integrations.

    `eval/loss`, `train/...`, and the step.
    """
    numbers = {
        name: value for name, value in row.items() if isinstance(value, int | float) and name != "step"
    }
    metrics = {
        f"eval/{name.removeprefix(EVAL)}" if name.startswith(EVAL) else f"train/{name}": value
        for name, value in numbers.items()
    }
    return {**metrics, STEP: row["step"]}


def run_summary(state: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    """What a table of runs is sorted by: each metric before, after and their difference; cost; state."""
    summary: dict[str, Any] = {"state": state.get("state"), "attempts": state.get("attempts")}
    summary |= {name: report[name] for name in SUMMARY_KEYS if name in report}
    summary |= {f"seconds/{name}": value for name, value in (report.get("seconds") or {}).items()}
    for name, metric in (report.get("metrics") or {}).items():
        summary |= _metric_summary(name, metric)
    chosen, rejected = (summary.get(f"after/{EVAL}{IMPLICIT}{name}") for name in ("chosen", "rejected"))
    if chosen is not None and rejected is not None:
        # In nats on held-out answers, so that they are on one scale for every method and beta.
        summary |= {"drift": (chosen + rejected) / 2, "margin": chosen - rejected}
    return summary


def _metric_summary(name: str, metric: Mapping[str, Any]) -> dict[str, float]:
    before, after = ((metric.get(when) or {}).get("value") for when in ("before", "after"))
    values = {f"before/{name}": before, f"after/{name}": after}
    if before is not None and after is not None:
        values[f"delta/{name}"] = after - before
    return {key: value for key, value in values.items() if value is not None}


def _as_text(value: object) -> str:
    """A text, or the messages of a conversation, as text."""
    if isinstance(value, list):
        return "\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in value)
    return "" if value is None else str(value)


def path_hash(run: RunDirectory) -> str:
    """Six hex digits of the path of the run: the same experiment in another directory is another run."""
    return hashlib.sha256(str(run.path.absolute()).encode()).hexdigest()[:6]


def containing_sweep(run: RunDirectory) -> str | None:
    """The folder's name of the sweep that the run is a cell of; None for a single run."""
    parent = run.path.absolute().parent
    is_sweep = any((parent / name).exists() for name in ("multirun.yaml", "sweep.json"))
    return redact(parent.name) if is_sweep else None
