"""Runs as cells of a comparison: their files as plain data, and the settings that differ among them.

Refuses to know what a metric means or how anything is drawn. A file that cannot be read is a fault of its cell, never a crash.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from ...runtime.files import read_json
from ...runtime.run_directory import RunDirectory

UNCOMPARED = ("name", "action", "hydra", "defaults", "tracking", "plan")
DERIVED = ("output_dir", "run_name", "logging_dir")  # follow from where and when a run was started
MISSING = "absent"
SEED = "training.seed"
CONTENT = "data.content"  # no setting: what the settings led to, where that differs although they do not
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a hundred specs in a tenth of the time


@dataclass(frozen=True)
class RunRecord:
    """One run as a cell of a comparison: its files as plain data, and what sets it apart from the other cells."""

    run: RunDirectory
    differs: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    spec: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    fault: str | None = None  # a file of the directory that cannot be read, and why

    @property
    def status(self) -> str:
        """queued, running, finished, failed, or unreadable."""
        return "unreadable" if self.fault else self.state.get("state", "queued")

    @property
    def error(self) -> str | None:
        """Why the run failed or cannot be read."""
        return self.fault or self.state.get("error")

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """{name: {"before": estimate, "after": estimate}}; empty while the run has no report."""
        return {
            name: dict(pair)
            for name, pair in (self.report.get("metrics") or {}).items()
            if isinstance(pair, Mapping)
        }

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase; empty while the run has no report."""
        return self.report.get("seconds") or {}

    @property
    def content(self) -> dict[str, Any]:
        """Content hashes by what was hashed: model, data, tokenizer."""
        return self.provenance.get("content") or {}

    @cached_property
    def logged(self) -> list[dict[str, Any]]:
        """Every logged step."""
        return _or_none(self.run.metrics)

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """Every generation on a held-out prompt."""
        return _or_none(self.run.samples)

    def after(self, metric: str) -> Any:
        """The estimate after training, or None."""
        return self.metrics.get(metric, {}).get("after")

    def before(self, metric: str) -> Any:
        """The estimate before training, or None."""
        return self.metrics.get(metric, {}).get("before")


def _or_none(reader: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What a reader gives, its objects only; nothing where the file cannot be read."""
    try:
        return [row for row in reader() if isinstance(row, dict)]
    except (OSError, UnicodeDecodeError):
        return []


def _spec(run: RunDirectory) -> Any:
    return (
        yaml.load(run.spec_file.read_text(), LOADER) if run.spec_file.exists() else {}
    )  # the safe one, in C


def load_record(run: RunDirectory) -> RunRecord:
    """Read a run; a file that cannot be read becomes the cell's fault, never an exception."""
    readers: dict[str, Callable[[], Any]] = {
        "spec": lambda: _spec(run),
        "state": run.state,
        "report": run.report,
        "provenance": lambda: read_json(run.provenance_file),
    }
    found: dict[str, Any] = {}
    fault = None
    for name, reader in readers.items():
        try:
            content = reader() or {}
            found[name] = content if isinstance(content, dict) else {}
        except (OSError, ValueError, yaml.YAMLError) as error:
            fault = fault or f"The {name} of {run.path} cannot be read: {' '.join(str(error).split())}"
    return RunRecord(run, label=run.path.name, fault=fault, **found)


def runs_in(folder: Path) -> list[RunDirectory]:
    """Every run in `folder`, those included that were given a spec but never began. What lies in a run, or is hidden, is none."""
    found = []
    for path, folders, files in os.walk(folder):
        if "run.json" in files or "spec.yaml" in files:
            found.append(Path(path))
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]
    return [RunDirectory(path) for path in sorted(found)]


def records_of(runs: Iterable[RunDirectory]) -> list[RunRecord]:
    """The runs as cells, labelled by what differs among them and sorted by it."""
    cells = [load_record(run) for run in runs]
    keys = differing([cell.spec for cell in cells])
    flat = [compared(cell.spec) for cell in cells]
    if _other_content(cells, keys):
        keys = [*keys, CONTENT]
        flat = [
            values | {CONTENT: (cell.content.get("data") or MISSING)[:8]}
            for cell, values in zip(cells, flat, strict=True)
        ]
    cells = [
        replace(cell, differs={key: values.get(key, MISSING) for key in keys} if cell.spec else {})
        for cell, values in zip(cells, flat, strict=True)
    ]
    return _labelled(sorted(cells, key=_order), short_names(keys))


def _other_content(cells: Sequence[RunRecord], keys: Sequence[str]) -> bool:
    """Whether equal settings of the data led to other rows: such cells are never taken for one configuration."""
    found: dict[str, set[str]] = {}
    for cell in cells:
        if "data" in cell.content:
            settings = {key: compared(cell.spec).get(key) for key in keys if key.startswith("data.")}
            found.setdefault(canonical(settings), set()).add(cell.content["data"])
    return any(len(digests) > 1 for digests in found.values())


def _order(cell: RunRecord) -> tuple[Any, ...]:
    values = tuple(_sortable(value) for value in cell.differs.values())
    return (not cell.differs, values, str(cell.run.path))


def _sortable(value: Any) -> tuple[int, float, str]:
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return (0, value, "") if numeric else (1, 0.0, str(value))


def _labelled(cells: list[RunRecord], names: Mapping[str, str]) -> list[RunRecord]:
    labels = [label_of(cell.differs, names) for cell in cells]
    clear = [
        label if labels.count(label) == 1 else f"{label} ({cell.run.path.name})"
        for cell, label in zip(cells, labels, strict=True)
    ]
    return [
        replace(cell, label=said) if label else cell
        for cell, label, said in zip(cells, labels, clear, strict=True)
    ]


def label_of(settings: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """`dpo, beta=0.1`: the settings in one line, those that a cell lacks left out."""
    there = {key: shown(value) for key, value in settings.items() if value != MISSING}
    return ", ".join(
        value if key.endswith(".name") else f"{names[key]}={value}" for key, value in there.items()
    )


def shown(value: Any) -> str:
    """A value of a spec as the user would type it."""
    return "null" if value is None else value if isinstance(value, str) else json.dumps(value)


def flatten(spec: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in spec.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def compared(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec as dotted keys, without those that say nothing about what was trained or how it was measured."""
    flat = flatten({key: value for key, value in spec.items() if key not in UNCOMPARED})
    return {key: value for key, value in flat.items() if key.split(".")[-1] not in DERIVED}


def differing(specs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The dotted keys whose values are not equal among `specs`, without those that follow from another key.

    `method.name` decides the rest of `method` as long as its options were left alone, so only what varies within one
    choice is listed beside it. Across groups nothing is dropped: a learning rate that changes with the method is news.
    """
    flat = [compared(spec) for spec in specs if spec]
    keys = dict.fromkeys(key for values in flat for key in values)
    varying = [key for key in keys if len({canonical(values.get(key, MISSING)) for values in flat}) > 1]
    kept = [key for key in varying if _decider(key) not in varying or not _follows(key, _decider(key), flat)]
    return sorted(
        kept, key=lambda key: (key != "method.name", not key.endswith(".name"), key.split(".")[0] != "method")
    )


def _decider(key: str) -> str:
    """The key that may decide the value of `key`: the name of its group."""
    return "" if key.endswith(".name") else f"{key.split('.')[0]}.name"


def _follows(key: str, decider: str, flat: Iterable[Mapping[str, Any]]) -> bool:
    """Whether equal values of `decider` always come with equal values of `key`."""
    found: dict[str, set[str]] = {}
    for values in flat:
        found.setdefault(canonical(values.get(decider)), set()).add(canonical(values.get(key, MISSING)))
    return all(len(values) == 1 for values in found.values())


def canonical(value: Any) -> str:
    """A value as text that is equal for equal values: 1 and 1.0 are."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return repr(float(value)) if number else json.dumps(value, sort_keys=True, default=str)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """`method.name` as `method`, `training.learning_rate` as `learning_rate`: the shortest that stay distinct."""
    if CONTENT in keys:
        return {**short_names([key for key in keys if key != CONTENT]), CONTENT: "rows"}
    short = {key: key.removesuffix(".name") if key.endswith(".name") else key.split(".")[-1] for key in keys}
    return {key: name if list(short.values()).count(name) == 1 else key for key, name in short.items()}
