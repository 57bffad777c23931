"""results.json: every raw figure of every piece, and where and how it was measured.

Pieces measured in several calls are merged.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .machine import current_commit, describe_machine, measure_gemm

# figures of calls that differ in these do not belong in one file
SAME_MACHINE_KEYS = ("processor", "processors", "threads", "packages")


class Results:
    """A file that is written after each piece, so that no figure is lost where a later piece fails."""

    def __init__(self, path: Path) -> None:
        self.path = path
        machine = describe_machine()
        self.content: dict[str, Any] = (
            json.loads(path.read_text()) if path.exists() else {"machine": machine, "pieces": {}}
        )
        changed = [key for key in SAME_MACHINE_KEYS if self.content["machine"][key] != machine[key]]
        if changed:
            raise SystemExit(
                f"{path}: its figures were taken with another {' and '.join(changed)}; "
                "give another file with --out."
            )
        if "gemm_gflops" not in self.content["machine"]:
            self.content["machine"]["gemm_gflops"] = measure_gemm()

    @property
    def pieces(self) -> dict[str, Any]:
        """By name: dpo/hh, tokens, sweep ..."""
        pieces: dict[str, Any] = self.content["pieces"]
        return pieces

    def add(self, name: str, figures: Any) -> None:
        """Add a piece, in place of an older one of its name, and write the whole file."""
        self.pieces[name] = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
            "commit": current_commit(),
            "load_average": [round(load, 2) for load in os.getloadavg()],
            "figures": figures,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text(json.dumps(self.content, indent=1) + "\n")
        partial.replace(self.path)


def incomparable_pieces(pieces: dict[str, Any]) -> list[str]:
    """The pieces whose two sides did not compute the same."""
    return [name for name, piece in pieces.items() if not _comparable(piece["figures"])]


def _comparable(figures: Any) -> bool:
    return not isinstance(figures, dict) or figures.get("comparable", True)
