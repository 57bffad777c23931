"""metrics.jsonl as it grows, told to trackers by the names that everybody's panels have, each step once.

Knows files and names. Refuses to know any tracker.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..runtime.files import read_jsonl
from ..runtime.redaction import redact
from ..runtime.run_directory import RunDirectory

NEVER = -1
STEP = "train/global_step"  # the axis of every curve, as transformers' integrations have it
SAMPLE_COLUMNS = ("prompt", "expected", "before", "after")
NUMBERS = ("steps", "tokens", "tokens_per_second", "peak_memory_gb")  # of report.json


class Tracker:
    """Somebody who is told of a run. An attempt that goes on opens it again."""

    def known(self) -> int:
        """The last step that it has been told of by attempts before, for good; NEVER where there is none."""
        return NEVER

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One logged step. A step may come in several parts, one after the other, and never again."""

    def conclude(self, numbers: Mapping[str, Any], samples: list[list[str]], page: Path) -> None:
        """What the run came to."""

    def close(self, state: str, *, failed: bool) -> None:
        """Nothing more will come of this attempt."""


class Follower:
    """Reads what was added to metrics.jsonl since the last time, and tells each tracker what it has not been told."""

    def __init__(self, run: RunDirectory, trackers: Sequence[Tracker]) -> None:
        self.run, self.trackers = run, trackers
        self.known = [NEVER for _ in trackers]
        self.place: int | None = None  # in the file; none before the first look

    def begin(self) -> None:
        """Ask what is known, and tell what is missing of earlier attempts. The run has forgotten the steps that it will take again."""
        self.known = [tracker.known() for tracker in self.trackers]
        self.place = 0
        self.tell()

    def tell(self) -> None:
        """Tell what was added."""
        for row in self._added():
            for tracker, known in zip(self.trackers, self.known, strict=True):
                if row["step"] > known:
                    tracker.log(row["step"], named(row))

    def conclude(self, numbers: Mapping[str, Any], samples: list[dict[str, Any]], page: Path) -> None:
        """Tell all of them what the run came to."""
        self.tell()
        for tracker in self.trackers:
            tracker.conclude(
                numbers, [[redact(said(row.get(name))) for name in SAMPLE_COLUMNS] for row in samples], page
            )

    def close(self, state: str, *, failed: bool) -> None:
        """Close all of them."""
        for tracker in self.trackers:
            tracker.close(state, failed=failed)

    def _added(self) -> Iterator[dict[str, Any]]:
        if self.place is None or not self.run.metrics_file.exists():
            return
        with self.run.metrics_file.open("rb") as file:
            file.seek(self.place)
            whole, end, _ = file.read().rpartition(b"\n")
        self.place += len(whole) + len(end)
        for line in whole.split(b"\n"):
            if line.strip():
                yield json.loads(line)


def last_step(run: RunDirectory) -> int:
    """The last step that metrics.jsonl holds."""
    return max((row["step"] for row in read_jsonl(run.metrics_file)), default=NEVER)


def named(row: Mapping[str, Any]) -> dict[str, float]:
    """TRL's names as transformers' integrations write them: eval_loss is eval/loss, all else train/..."""
    numbers = {
        name: value for name, value in row.items() if isinstance(value, int | float) and name != "step"
    }
    return {
        f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}": value
        for name, value in numbers.items()
    } | {STEP: row["step"]}


def summary(state: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    """What a table of runs is sorted by: each metric before, after and the difference, the cost, the state."""
    found: dict[str, Any] = {"state": state.get("state"), "attempts": state.get("attempts")}
    found |= {name: report[name] for name in NUMBERS if name in report}
    found |= {f"seconds/{name}": value for name, value in (report.get("seconds") or {}).items()}
    for name, pair in (report.get("metrics") or {}).items():
        before, after = ((pair.get(when) or {}).get("value") for when in ("before", "after"))
        found |= {
            f"{when}/{name}": value
            for when, value in (("before", before), ("after", after))
            if value is not None
        }
        if before is not None and after is not None:
            found[f"delta/{name}"] = after - before
    chosen, rejected = (found.get(f"delta/eval_logps/{name}") for name in ("chosen", "rejected"))
    if (
        chosen is not None and rejected is not None
    ):  # in nats on held-out answers, so the same for every method and beta
        found |= {"drift": (chosen + rejected) / 2, "margin": chosen - rejected}
    return found


def said(value: Any) -> str:
    """A text, or the messages of a conversation, as text."""
    if isinstance(value, list):
        return "\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in value)
    return "" if value is None else str(value)


def place_of(run: RunDirectory) -> str:
    """Six hex digits of where the run lies: the same experiment in another place is another run."""
    return hashlib.sha256(str(run.path.absolute()).encode()).hexdigest()[:6]


def sweep_of(run: RunDirectory) -> str | None:
    """The sweep that the run is a cell of, by its folder's name; None where it is none."""
    parent = run.path.absolute().parent
    return (
        redact(parent.name)
        if any((parent / name).exists() for name in ("multirun.yaml", "sweep.json"))
        else None
    )
