"""One source of a mixture: where its rows lie, which of them are taken, and under which columns."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from ...runtime.files import dangling_link
from ..validation import SpecError, did_you_mean, require

DataSource = Enum("DataSource", ["hub", "local", "embedded"])

SHARES = ("weight", "fraction", "count")  # how many of a source's rows are taken: one of these, or all rows
FILTER_WORDS = ("min", "max", "not")
LAB_COLUMNS = (  # that a converter may read, of a row of any format
    "messages", "conversations", "conversation", "prompt", "question", "instruction", "input", "context",
    "completion", "output", "response", "answer", "chosen", "rejected", "label", "text", "margin",
    "system", "system_prompt", "history", "completions", "tools", "chat_template_kwargs",
)  # fmt: skip


@dataclass
class Source:
    """Where rows lie, which of them are taken, and under which columns."""

    kind: DataSource = DataSource.hub
    path: str | None = None  # a Hub id, or a file, a folder or a glob
    config: str | None = None  # the configuration on the Hub, or of a folder that was fetched from it
    revision: str | None = None  # a branch, tag or commit on the Hub
    train: str | None = "train"  # the split that is trained on; null: none, it is for evaluation alone
    eval: str | None = None  # the split that is held out
    eval_path: str | None = None  # the same, as a file of its own
    weight: float | None = None  # its share of the mixture; at most one of these three is set, none: all rows
    fraction: float | None = None  # of its own rows
    count: int | None = None  # rows
    repeat: int = 1  # how often each of them is seen in an epoch
    columns: dict[str, str | None] = field(
        default_factory=dict
    )  # the lab's column: the file's, `a.b` for a part of one; null: not read
    filter: dict[str, Any] = field(
        default_factory=dict
    )  # column: a value, a list of them, or {min: , max: , not: }; a row is taken where all hold

    @property
    def has_train(self) -> bool:
        """Whether any of its rows are trained on."""
        return self.train is not None

    @property
    def has_eval(self) -> bool:
        """Whether it names the rows that are held out."""
        return self.eval is not None or self.eval_path is not None


def check_source(key: str, source: Source) -> None:
    """Raise SpecError where the settings of the source at `key`, `data.sources.uf`, exclude each other."""
    _check_place(key, source)
    _check_share(key, source)
    for column in source.columns:
        require(
            column in LAB_COLUMNS,
            f"{key}.columns.{column}",
            source.columns[column],
            "the left side is a column that the lab reads"
            + (did_you_mean(column, list(LAB_COLUMNS)) or f": one of {', '.join(LAB_COLUMNS)}."),
        )
    for column, condition in source.filter.items():
        _check_condition(f"{key}.filter.{column}", condition)


def _check_place(key: str, source: Source) -> None:
    hub, local = source.kind is DataSource.hub, source.kind is DataSource.local
    if source.kind is DataSource.embedded:
        for name in ("path", "config", "revision", "eval", "eval_path"):
            value = getattr(source, name)
            require(value is None, f"{key}.{name}", value, "the embedded data has none; leave it out.")
    else:
        remedy = f"name its rows: {key}.path=org/name, or {key}.kind=local {key}.path=rows.jsonl."
        require(bool(source.path), f"{key}.path", source.path, remedy)
    looks_local = hub and source.path and _is_file_name(source.path)
    require(not looks_local, f"{key}.path", source.path, f"it is a file or a folder: add {key}.kind=local.")
    require(
        hub or source.revision is None,
        f"{key}.revision",
        source.revision,
        f"only the Hub has one, and {key}.kind is not hub.",
    )
    require(
        local or source.eval_path is None,
        f"{key}.eval_path",
        source.eval_path,
        f"only {key}.kind=local reads held-out rows from a file; of the Hub name a split with {key}.eval.",
    )
    require(
        source.eval is None or source.eval_path is None,
        f"{key}.eval_path",
        source.eval_path,
        f"the held-out rows are named by {key}.eval={source.eval} already; keep one of them.",
    )
    require(
        source.eval is None or source.eval != source.train,
        f"{key}.eval",
        source.eval,
        "this split is trained on; hold out another one.",
    )
    is_used = source.has_train or source.has_eval or source.kind is DataSource.embedded
    require(
        is_used,
        f"{key}.train",
        source.train,
        f"nothing of it is read, as {key}.eval is null too; set one of them, or leave it out with ~{key}.",
    )
    if local:
        require_exists(f"{key}.path", source.path)
        require_exists(f"{key}.eval_path", source.eval_path)


def _check_share(key: str, source: Source) -> None:
    given = [f"{name}={value}" for name in SHARES if (value := getattr(source, name)) is not None]
    if len(given) > 1:
        raise SpecError(
            f"{key}: has {' and '.join(given)}; keep one of {', '.join(SHARES)}, and set the other to null."
        )
    if given and not source.has_train:
        raise SpecError(
            f"{key}.{given[0]}: it has no rows to train on, as {key}.train is null, and its rows for "
            "evaluation are all taken; leave it out."
        )
    above_zero = f"must be above 0; ~{key} leaves the source out."
    if source.weight is not None:
        require(0 < source.weight < math.inf, f"{key}.weight", source.weight, above_zero)
    if source.fraction is not None:
        require(
            0 < source.fraction <= 1,
            f"{key}.fraction",
            source.fraction,
            f"must be above 0 and at most 1: it is of the source's own rows; ~{key} leaves the source out, "
            f"and {key}.repeat shows its rows more than once.",
        )
    if source.count is not None:
        require(source.count > 0, f"{key}.count", source.count, above_zero)
    require(source.repeat > 0, f"{key}.repeat", source.repeat, above_zero)


def _check_condition(key: str, condition: Any) -> None:
    """A value, a list of values, or limits of numbers and what it is not."""
    if isinstance(condition, list | tuple):
        require(len(condition) > 0, key, "[]", "no row has one of no values; name some.")
        for value in condition:
            require(_is_value(value), key, value, "a list holds text, numbers, true, false or null.")
        return
    if not isinstance(condition, Mapping):
        require(_is_value(condition), key, condition, "give a value, a list, or {min: 1, max: 5, not: x}.")
        return
    require(bool(condition), key, "{}", "it says nothing; give {min: 1}, {max: 5} or {not: x}.")
    for word, value in condition.items():
        require(
            word in FILTER_WORDS,
            f"{key}.{word}",
            value,
            f"a filter knows {', '.join(FILTER_WORDS)}{did_you_mean(str(word), list(FILTER_WORDS)) or '.'}",
        )
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        require(word == "not" or is_number, f"{key}.{word}", value, "must be a finite number.")
        if word == "not":
            require(not isinstance(value, Mapping), f"{key}.not", value, "give a value or a list of them.")
            _check_condition(f"{key}.not", value)
    low, high = condition.get("min", -math.inf), condition.get("max", math.inf)
    require(low <= high, f"{key}.min", low, f"no number is that large and at most {high}; exchange them.")


def _is_value(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _is_file_name(path: str) -> bool:
    """Whether a path is none of the Hub's, which are `name` or `org/name`."""
    return path.startswith(("/", ".", "~")) or path.count("/") > 1 or Path(path).suffix.lower() in _SUFFIXES


_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".gz", ".zst")


def require_exists(key: str, path: str | None) -> None:
    """Raise SpecError where there is no such file or folder, nor a file that the pattern matches."""
    if not path:
        return
    place = Path(os.path.expanduser(path))
    exists = os.path.exists(place) or _matches(str(place))
    problem = dangling_link(place) or f"no such file or folder (looked from {Path.cwd()})"
    require(exists, key, path, f"{problem}; give a path that exists.")


def _matches(pattern: str) -> bool:
    import glob

    return glob.has_magic(pattern) and next(glob.iglob(pattern, recursive=True), None) is not None
