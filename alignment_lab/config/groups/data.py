"""The data group: which rows to read, how to split them, and how long one may be."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ..validation import require
from .data_source import DataSource, Source

BadRows = Enum("BadRows", ["error", "drop"])


@dataclass
class Data:
    """Which rows to read, how to split them, and how long one may be."""

    name: str = "data"
    source: DataSource = DataSource.hub
    path: str | None = None  # a Hub id, or a file or folder of JSON, JSONL, CSV, Parquet or save_to_disk form
    config: str | None = None  # the configuration on the Hub
    split: str = "train"
    eval_path: str | None = None  # a file with the held-out rows; null: taken from the training rows
    eval_split: str | None = None  # the same, for a split of data.path
    eval_fraction: float = 0.1  # share of the prompts that is held out, where no held-out rows are named
    max_length: int = 1024  # tokens of prompt and completion; a longer completion is truncated at its end
    streaming: bool = (
        False  # read only the rows that training.max_steps needs, in order; nothing is downloaded whole
    )
    bad_rows: BadRows = BadRows.error  # rows that lack a field: stop and name them, or drop and count them

    def __post_init__(self) -> None:
        is_share = 0 < self.eval_fraction < 1
        require(
            is_share, "data.eval_fraction", self.eval_fraction, "must lie between 0 and 1: it is a share."
        )
        require(self.max_length >= 8, "data.max_length", self.max_length, "must be at least 8 tokens.")
        self._check_source()
        if self.source is DataSource.local:
            _check_exists("data.path", self.path)
            _check_exists("data.eval_path", self.eval_path)

    def mixture(self) -> dict[str, Source]:
        """The sources by name: a single file, data set or split is a mixture of one."""
        return {
            self.name: Source(
                self.source,
                self.path,
                self.config,
                train=self.split,
                eval=self.eval_split,
                eval_path=self.eval_path,
            )
        }

    def _check_source(self) -> None:
        embedded, local = self.source is DataSource.embedded, self.source is DataSource.local
        require(
            embedded or bool(self.path),
            "data.path",
            self.path,
            "name the rows: data=local data.path=rows.jsonl.",
        )
        require(
            not embedded or not self.path,
            "data.path",
            self.path,
            "the embedded data has no path; add data=local for your own file.",
        )
        require(
            not embedded or not self.streaming,
            "data.streaming",
            "true",
            "the embedded data is on disk and small; leave it out, or use data=hub.",
        )
        require(
            local or not self.eval_path,
            "data.eval_path",
            self.eval_path,
            "only data=local reads held-out rows from a file; of the Hub name a split with data.eval_split.",
        )
        require(
            not embedded or not self.eval_split,
            "data.eval_split",
            self.eval_split,
            "the embedded data has held-out rows of its own; leave it out, or use data=hub.",
        )


def _check_exists(key: str, path: str | None) -> None:
    exists = path is None or Path(path).expanduser().exists()
    remedy = f"no such file or folder (looked from {Path.cwd()}); give a path that exists."
    require(exists, key, path, remedy)
