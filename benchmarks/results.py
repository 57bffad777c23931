"""results.json: every raw figure of every piece, and where and how it was taken. Pieces measured in several calls are merged."""

from __future__ import annotations

import json
import os
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .machine import commit, describe, gemm

FIXED = (
    "processor",
    "processors",
    "threads",
    "packages",
)  # calls that differ in these are not one set of figures


class Results:
    """A file that grows by pieces: nothing that was measured is lost where a later piece fails."""

    def __init__(self, path: Path) -> None:
        self.path = path
        here = describe()
        self.content: dict[str, Any] = (
            json.loads(path.read_text()) if path.exists() else {"machine": here, "pieces": {}}
        )
        others = [key for key in FIXED if self.content["machine"][key] != here[key]]
        if others:
            raise SystemExit(
                f"{path}: its figures were taken with another {' and '.join(others)}; give another file with --out."
            )
        if "gemm_gflops" not in self.content["machine"]:
            self.content["machine"]["gemm_gflops"] = gemm()

    @property
    def pieces(self) -> dict[str, Any]:
        """By name: dpo/hh, tokens, sweep ..."""
        found: dict[str, Any] = self.content["pieces"]
        return found

    def add(self, name: str, figures: Any) -> None:
        """Put a piece in the place of an older one of its name, and write the file whole."""
        self.pieces[name] = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
            "commit": commit(),
            "load_average": [round(load, 2) for load in os.getloadavg()],
            "figures": figures,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text(json.dumps(self.content, indent=1) + "\n")
        partial.replace(self.path)


def failed(pieces: dict[str, Any]) -> list[str]:
    """Pieces whose two sides did not compute the same."""
    return [name for name, piece in pieces.items() if not _comparable(piece["figures"])]


def _comparable(figures: Any) -> bool:
    return not isinstance(figures, dict) or figures.get("comparable", True)
