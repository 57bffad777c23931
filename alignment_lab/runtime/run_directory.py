"""The run directory: the path of every file of a run, and the changes of its state.

Knows file names, JSON and atomic writes. Refuses to know what a model, a method or a metric means, and never
imports torch.
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
from .redaction import redact_data

# interrupted: the same command resumes it
RUN_STATES = (
    "queued",
    "running",
    "interrupted",
    "finished",
    "failed",
)


@dataclass(frozen=True)
class RunDirectory:
    """One run on disk.

    Properties are paths; methods that read a missing file return None or an empty container.
    """

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
    def row_scores_file(self) -> Path:
        """Scores of single held-out rows after training."""
        return self.path / "row_scores.json"

    @property
    def report_file(self) -> Path:
        """Rows, tokens, seconds and metrics of the finished run."""
        return self.path / "report.json"

    @property
    def page_file(self) -> Path:
        """The report as an HTML page."""
        return self.path / "report.html"

    @property
    def checkpoints(self) -> Path:
        """Folder of the committed checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """Folder of the final weights with tokenizer, template and generation config."""
        return self.path / "model"

    @property
    def lock(self) -> Path:
        """Held while a process runs here."""
        return self.path / ".lock"

    @property
    def partial(self) -> Path:
        """Folder in which directories are written before they are published; never part of a finished run."""
        return self.path / ".partial"

    def spec(self) -> dict[str, Any]:
        """The resolved experiment as plain data."""
        return yaml.safe_load(self.spec_file.read_text()) if self.spec_file.exists() else {}

    def state(self) -> dict[str, Any]:
        """run.json; empty where the run never started."""
        return read_json(self.state_file) or {}

    def metrics(self) -> list[dict[str, Any]]:
        """Every logged step, in order."""
        return read_jsonl(self.metrics_file)

    def samples(self) -> list[dict[str, Any]]:
        """Every generation on a held-out prompt."""
        return read_jsonl(self.samples_file)

    def row_scores(self) -> dict[str, Any]:
        """row_scores.json; empty where the run has none."""
        return read_json(self.row_scores_file) or {}

    def report(self) -> dict[str, Any] | None:
        """report.json; None while the run has not finished."""
        return read_json(self.report_file)

    def mark_queued(self, *, run_id: str, spec: str) -> None:
        """Prepare the directory for a job that starts later: spec.yaml, and run.json in state queued."""
        self.path.mkdir(parents=True, exist_ok=True)
        # not durable: a sweep queues thousands, and the same command would write them again
        write_atomic(self.spec_file, spec, durable=False)
        state = {**self.state(), "state": "queued", "id": run_id, "error": None}
        write_atomic(self.state_file, json.dumps(redact_data(state), indent=2) + "\n", durable=False)

    def start_attempt(self, *, run_id: str, spec: str) -> None:
        """Start an attempt: spec.yaml, and run.json in state running."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        for leftover in (self.partial, *self.checkpoints.glob(".*.gone")):  # of an attempt that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        write_atomic(self.spec_file, spec)
        if self.metrics_file.exists() and not self.metrics_file.read_bytes().endswith(b"\n"):
            with self.metrics_file.open("a") as file:
                file.write("\n")  # the last attempt was killed in the middle of a line
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

    def update_state(self, **fields: Any) -> None:
        """Set fields of run.json."""
        write_json(self.state_file, {**self.state(), **fields})

    def finish(self) -> None:
        """End the attempt: the run is finished."""
        shutil.rmtree(self.partial, ignore_errors=True)
        self._set_state("finished", ended=utc_now())

    def fail(self, error: str, *, resumable: bool = False) -> None:
        """End the attempt: the run failed, or with `resumable` was interrupted.

        On a full disk the old state stays.
        """
        shutil.rmtree(self.partial, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._set_state("interrupted" if resumable else "failed", ended=utc_now(), error=error)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's lock inside the block. Raises UserError where another process runs here.

        The kernel releases the lock of a killed process.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(self.lock, self._busy_message):
            try:
                yield
            finally:
                self.lock.unlink(missing_ok=True)

    def _busy_message(self) -> str:
        state = self.state()
        process = f"process {state.get('pid')} on {state.get('host')}"
        return f"{self.path}: {process} runs there now; wait for it, end it, or give another directory."

    def log_metrics(self, row: dict[str, Any]) -> None:
        """Append one logged step to metrics.jsonl, as one write."""
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def truncate_metrics(self, step: int) -> None:
        """Drop the logged steps after `step`: an attempt that resumes there logs them again."""
        if self.metrics_file.exists():
            rows = [row for row in self.metrics() if row["step"] <= step]
            write_atomic(self.metrics_file, "".join(json.dumps(row) + "\n" for row in rows))

    def write_samples(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write samples.jsonl."""
        write_atomic(self.samples_file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def write_row_scores(self, scores: dict[str, Any]) -> None:
        """Write row_scores.json, in one line: it has a number per row and metric."""
        write_atomic(self.row_scores_file, json.dumps(scores) + "\n")

    def discard_if_unused(self) -> None:
        """Delete the files that this process created if nothing was logged, and directories then empty.

        Never deletes a file that was there before, the record of another attempt, or the working directory.
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

    def _set_state(self, state: str, **fields: Any) -> None:
        assert state in RUN_STATES
        self.update_state(state=state, **fields)
