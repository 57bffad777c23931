"""What a measure gives: scores per prompt, so that differences between models are paired, and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .intervals import Scores

TableRows = Sequence[
    Mapping[str, Any]
]  # a column is a key; {"value", "ci95", "n"} is drawn with its interval


@dataclass(frozen=True)
class MeasureResult:
    """What one measure says of one model."""

    scores: dict[str, Scores] = field(default_factory=dict)  # by the name of the metric
    tables: Mapping[str, TableRows] = field(default_factory=dict)  # by their titles: what is no score
    files: dict[str, str] = field(default_factory=dict)  # by their names: what is written beside report.json
    lines: list[str] = field(default_factory=list)  # what a reader of the figures must know
    # by their paths below report.json's folder: files that programs look for under these names
    named_files: dict[str, str] = field(default_factory=dict)
