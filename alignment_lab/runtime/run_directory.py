"""The run directory: where everything lies, written so that a reader never sees half a file.

Knows paths, JSON and atomic writes. Refuses to know what a model, a method or a metric means, and never imports torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .files import exclusive_lock, read_json, read_jsonl, utc_now, write_atomic, write_json
from .redaction import redacted

RUN_STATES = (
    "queued",
    "running",
    "interrupted",
    "finished",
    "failed",
)  # interrupted: the same command goes on


@dataclass(frozen=True)
class RunDirectory:
    """One run on disk. Every property names a file of the directory; reading a missing one gives None or an empty list."""

    path: Path

    @property
    def spec_file(self) -> Path:
        """The whole resolved experiment."""
        return self.path / "spec.yaml"

    @property
    def state_file(self) -> Path:
        """State, id, attempts, host, error."""
        return self.path / "run.json"

    @property
    def provenance_file(self) -> Path:
        """Command, code, packages, hardware, content hashes."""
        return self.path / "provenance.json"

    @property
    def metrics_file(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def samples_file(self) -> Path:
        """Generations before and after."""
        return self.path / "samples.jsonl"

    @property
    def report_file(self) -> Path:
        """What the run came to."""
        return self.path / "report.json"

    @property
    def page_file(self) -> Path:
        """The report for a browser."""
        return self.path / "report.html"

    @property
    def checkpoints(self) -> Path:
        """Committed checkpoints only."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The final weights with tokenizer, template and generation config."""
        return self.path / "model"

    @property
    def lock(self) -> Path:
        """Held while a process runs here."""
        return self.path / ".lock"

    @property
    def partial(self) -> Path:
        """Where directories are written before they are published; never part of a finished run."""
        return self.path / ".partial"

    def spec(self) -> dict[str, Any]:
        """The resolved experiment as plain data."""
        return yaml.safe_load(self.spec_file.read_text()) if self.spec_file.exists() else {}

    def state(self) -> dict[str, Any]:
        """run.json, empty where the run never began."""
        return read_json(self.state_file) or {}

    def metrics(self) -> list[dict[str, Any]]:
        """Every logged step, in order."""
        return read_jsonl(self.metrics_file)

    def samples(self) -> list[dict[str, Any]]:
        """Every generation on a held-out prompt."""
        return read_jsonl(self.samples_file)

    def report(self) -> dict[str, Any] | None:
        """report.json, or None while the run has not ended."""
        return read_json(self.report_file)

    def mark_queued(self, *, run_id: str, spec: str) -> None:
        """Set the directory up for a job that will begin later: spec.yaml, and run.json in state queued."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomic(self.spec_file, spec, durable=False)  # of thousands; the command would make them again
        state = {**self.state(), "state": "queued", "id": run_id, "error": None}
        write_atomic(self.state_file, json.dumps(redacted(state), indent=2) + "\n", durable=False)

    def start_attempt(self, *, run_id: str, spec: str) -> None:
        """Open the directory for an attempt: spec.yaml and run.json in state running."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        for left in (self.partial, *self.checkpoints.glob(".*.gone")):  # by an attempt that was killed
            shutil.rmtree(left, ignore_errors=True)
        write_atomic(self.spec_file, spec)
        if self.metrics_file.exists() and not self.metrics_file.read_bytes().endswith(b"\n"):
            with self.metrics_file.open("a") as file:
                file.write("\n")  # the last attempt was cut off inside of a line
        attempts = self.state().get("attempts", 0) + 1
        self._set_state(
            "running",
            id=run_id,
            attempts=attempts,
            host=socket.gethostname(),
            pid=os.getpid(),
            started=utc_now(),
            ended=None,
            error=None,
        )

    def update_state(self, **facts: Any) -> None:
        """Add to what run.json says of this attempt."""
        write_json(self.state_file, {**self.state(), **facts})

    def finish(self) -> None:
        """Close the directory: the run reached its end."""
        shutil.rmtree(self.partial, ignore_errors=True)
        self._set_state("finished", ended=utc_now())

    def fail(self, error: str, *, resumable: bool = False) -> None:
        """Close the directory: the run stopped, and why. Resumable: nothing is wrong with it. A full disk keeps the state that was."""
        shutil.rmtree(self.partial, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._set_state("interrupted" if resumable else "failed", ended=utc_now(), error=error)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else runs in this directory meanwhile. Raises UserError where somebody does; the kernel frees a killed one's lock."""
        self.path.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(self.lock, self._busy):
            try:
                yield
            finally:
                self.lock.unlink(missing_ok=True)

    def _busy(self) -> str:
        state = self.state()
        who = f"process {state.get('pid')} on {state.get('host')}"
        return f"{self.path}: {who} runs there now; wait for it, end it, or give another directory."

    def log_metrics(self, row: dict[str, Any]) -> None:
        """Append one logged step to metrics.jsonl, as one write."""
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def truncate_metrics(self, step: int) -> None:
        """Forget the logged steps behind `step`: an attempt that starts there logs them again."""
        if self.metrics_file.exists():
            kept = [row for row in self.metrics() if row["step"] <= step]
            write_atomic(self.metrics_file, "".join(json.dumps(row) + "\n" for row in kept))

    def write_samples(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write samples.jsonl."""
        write_atomic(self.samples_file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def discard_if_unused(self) -> None:
        """Take back what this process began, where nothing came about: its own files, and the directories that are then empty.

        Never a file that was there before, a record of another attempt, or the working directory.
        """
        state = self.state()
        if (
            self.metrics_file.exists()
            or state.get("attempts", 1) > 1
            or state.get("pid", os.getpid()) != os.getpid()
        ):
            return
        if state:
            for file in (self.spec_file, self.provenance_file, self.state_file):
                file.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.path, *self.path.parents[:2]):
            if folder.is_dir() and not any(folder.iterdir()) and folder.resolve() != Path.cwd():
                folder.rmdir()

    def _set_state(self, state: str, **facts: Any) -> None:
        assert state in RUN_STATES
        self.update_state(state=state, **facts)


def find_runs(folder: Path) -> Iterator[RunDirectory]:
    """Every run in `folder`, itself included, in the order of their names: what holds a run.json is a run."""
    for file in sorted(folder.rglob("run.json")):
        if not any(part.startswith(".") for part in file.relative_to(folder).parts):  # a sweep's own
            yield RunDirectory(file.parent)
