"""What is looked for in training rows, and left out where it is asked for: repeats and leaked rows."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from ...runtime.files import dangling_link
from ..validation import require

Duplicates = Enum("Duplicates", ["none", "exact", "near"])
Overlap = Enum("Overlap", ["none", "warn", "drop"])


@dataclass
class Cleaning:
    """Which training rows are left out though they are sound. Held-out rows never are."""

    duplicates: Duplicates = Duplicates.none  # rows that repeat another: left out where equal, or nearly so
    threshold: float = 0.8  # of duplicates=near: the share of three-word sequences that two rows share
    overlap: Overlap = Overlap.warn  # training rows with a word sequence of a held-out row: told, or left out
    benchmarks: list[str] = field(default_factory=list)  # files of prompts that no training row may hold
    ngram: int = 13  # words of a sequence that tells a leak (GPT-3's convention)

    def __post_init__(self) -> None:
        is_share = 0.5 <= self.threshold <= 1
        remedy = "must lie between 0.5 and 1: it is a share of three-word sequences."
        require(is_share, "data.clean.threshold", self.threshold, remedy)
        remedy = "must lie between 5 and 50 words: fewer are phrases, more are found in copies alone."
        require(5 <= self.ngram <= 50, "data.clean.ngram", self.ngram, remedy)
        for path in self.benchmarks:
            file = Path(os.path.expanduser(path))
            problem = dangling_link(file) or f"no such file (looked from {Path.cwd()})"
            is_file = bool(path) and os.path.isfile(file)
            require(is_file, "data.clean.benchmarks", path, f"{problem}; give a file of prompts.")
        repeated = sorted({path for path in self.benchmarks if self.benchmarks.count(path) > 1})
        remedy = "is named twice; name each file once."
        require(not repeated, "data.clean.benchmarks", ", ".join(repeated), remedy)
