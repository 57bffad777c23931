"""One source of a mixture: where its rows lie, which of them are taken, and under which columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

DataSource = Enum("DataSource", ["hub", "local", "embedded"])


@dataclass
class Source:
    """Where rows lie, which of them are taken, and under which columns."""

    kind: DataSource = DataSource.hub
    path: str | None = None  # a Hub id, or a file, a folder or a glob
    config: str | None = None  # the configuration on the Hub
    revision: str | None = None  # a branch, tag or commit on the Hub
    train: str | None = "train"  # the split that is trained on; null: none, it is for evaluation alone
    eval: str | None = None  # the split that is held out
    eval_path: str | None = None  # the same, as a file of its own
    weight: float | None = None  # its share of the mixture; at most one of these three is set
    fraction: float | None = None  # of its own rows
    count: int | None = None  # rows
    repeat: int = 1  # how often each of them is seen in an epoch
    columns: dict[str, str] = field(default_factory=dict)  # the lab's column: the file's
    filter: dict[str, Any] = field(default_factory=dict)  # column: a value, a list of them, {min: , max: }
