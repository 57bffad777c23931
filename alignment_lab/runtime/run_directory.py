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

from . import folders
from .attempts import closed_attempt
from .files import exclusive_lock, read_json, read_jsonl, utc_now, write_atomic, write_json
from .output import lost_output
from .publishing import publish_beside, stamps
from .redaction import redact_data

EVALUATION = "evaluation"  # the kind of a run that trains nothing, in run.json; a training run has none
# The safe loader in C where there is one: a hundred specs in a tenth of the time.
YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_first_attempts: set[Path] = set()  # absolute paths of the runs whose record this process began


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
    def quarantine_file(self) -> Path:
        """Rows that were left out as unusable: source, file, line, reason."""
        return self.path / "quarantine.jsonl"

    @property
    def report_file(self) -> Path:
        """Rows, tokens, seconds and metrics of the finished run."""
        return self.path / "report.json"

    @property
    def page_file(self) -> Path:
        """The report as an HTML page."""
        return self.path / "report.html"

    @property
    def preview_file(self) -> Path:
        """The rows as the model sees them, as an HTML page."""
        return self.path / folders.PREVIEW_FILE

    @property
    def evaluations(self) -> Path:
        """Folder of what evaluations said of this run since, a file for each."""
        return self.path / "evaluations"

    @property
    def checkpoints(self) -> Path:
        """Folder of the committed checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """Folder of the final weights with tokenizer, template and generation config."""
        return self.path / "model"

    @property
    def unproved_model(self) -> Path:
        """Folder of the final weights where they were not proved to be what was trained."""
        return self.path / "model.unproved"

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
        return yaml.load(self.spec_file.read_text(), YAML_LOADER) if self.spec_file.exists() else {}

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
        folders.make_folder(self.path)
        # not durable: a sweep queues thousands, and the same command would write them again
        write_atomic(self.spec_file, spec, durable=False)
        state = {**self.state(), "state": "queued", "id": run_id, "error": None}
        write_atomic(self.state_file, json.dumps(redact_data(state), indent=2) + "\n", durable=False)

    def start_attempt(self, *, run_id: str, spec: str, kind: str | None = None) -> None:
        """Start an attempt: run.json in state running, which makes the directory the lab's, and spec.yaml."""
        folders.make_folder(self.path)
        if not self.state_file.exists():
            _first_attempts.add(self.path.absolute())
        self._begin_attempt(run_id)
        write_atomic(self.spec_file, spec)
        if kind:
            self.update_state(kind=kind)
        else:
            folders.make_folder(self.checkpoints)
        self.clear_partial()  # of an attempt that was killed
        if self.metrics_file.exists() and not self.metrics_file.read_bytes().endswith(b"\n"):
            with self.metrics_file.open("a") as file:
                file.write("\n")  # the last attempt was killed in the middle of a line

    def _begin_attempt(self, run_id: str) -> None:
        state = self.state()
        self._set_state(
            "running",
            id=run_id,
            attempts=state.get("attempts", 0) + 1,
            history=[*state.get("history", []), *([self._last_attempt()] if state.get("started") else [])],
            training=None,
            cost=None,
            host=socket.gethostname(),
            pid=os.getpid(),
            started=utc_now(),
            ended=None,
            error=None,
            lost_output=None,
        )

    def _last_attempt(self) -> dict[str, Any]:
        """The attempt before this one, which may have been killed."""
        files = [self.metrics_file, *self.checkpoints.glob("checkpoint-*/manifest.json")]
        last_write = max((file.stat().st_mtime for file in files if file.exists()), default=0.0)
        last_logged = max((row.get("step", 0) for row in self.metrics()), default=0)
        return closed_attempt(self.state(), last_logged, last_write)

    def update_state(self, **fields: Any) -> None:
        """Set fields of run.json."""
        write_json(self.state_file, {**self.state(), **fields})

    def restore_state(self, state: dict[str, Any]) -> None:
        """Take back an attempt that was refused before it trained: run.json is `state`, as it was before."""
        self.clear_partial()
        write_json(self.state_file, state)

    def finish(self) -> None:
        """End the attempt: the run is finished."""
        self.clear_partial()
        self._set_state("finished", ended=utc_now())

    def fail(self, error: str, *, resumable: bool = False) -> None:
        """End the attempt: the run failed, or with `resumable` was interrupted.

        On a full disk the old state stays.
        """
        self.clear_partial()
        with contextlib.suppress(OSError):
            self._set_state("interrupted" if resumable else "failed", ended=utc_now(), error=error)

    def clear_partial(self) -> None:
        """Delete what was not published, and nothing else that lies beside it."""
        for leftover in (self.partial / "model", *self.partial.glob("checkpoint-*")):
            shutil.rmtree(leftover, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.partial.rmdir()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's lock inside the block. Raises UserError where another process runs here.

        The kernel releases the lock of a killed process.
        """
        folders.make_folder(self.path)
        with exclusive_lock(self.lock, self._busy_message) as lock:
            try:
                yield
            finally:
                if not os.fstat(lock.fileno()).st_size:  # the lab writes nothing into it
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

    def write_quarantine(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write quarantine.jsonl, secrets redacted."""
        partial = self.quarantine_file.with_name(f".{self.quarantine_file.name}.partial")
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(redact_data(row)) + "\n" for row in rows)
        partial.replace(self.quarantine_file)

    def require_own(self) -> None:
        """Raise UserError where a run here would mix with, or replace, files that no run of the lab wrote."""
        folders.require_own(self.path, str(self.path))

    def publish_results(self, samples: Iterable[dict[str, Any]], *, is_proved: bool = True) -> list[Path]:
        """Move the model that was written into `partial` to its place, and write samples.jsonl.

        One that `is_proved` does not say to be saved right goes to `unproved_model`.

        What lies there and no earlier attempt wrote stays, or is set aside where its name is needed; returns
        the paths of what was set aside.
        """
        published, written = self.state().get("published"), self.partial / self.model.name
        results = [self.samples_file, self.row_scores_file, self.report_file] if published is None else []
        results += [self.page_file] if folders.is_foreign_page(self.page_file) else []
        kept = [folders.set_aside(path) for path in results if os.path.lexists(path)]
        self.update_state(published=stamps(written))
        kept += publish_beside(written, self.model if is_proved else self.unproved_model, published or {})
        self.write_samples(samples)
        return kept

    def discard_if_unused(self) -> None:
        """Delete the files that this process created if nothing was logged, and the folders that it made.

        Never deletes a file or a folder that was there before, or the record of another attempt.
        """
        state = self.state() if folders.holds_run(self.path) else {}
        if (
            self.metrics_file.exists()
            or state.get("attempts", 1) > 1
            or state.get("pid", os.getpid()) != os.getpid()
        ):
            return
        if self.path.absolute() in _first_attempts:
            for file in (self.spec_file, self.provenance_file, self.state_file):
                file.unlink(missing_ok=True)
            _first_attempts.discard(self.path.absolute())
        folders.take_back_hydra(self.path)
        folders.take_back(self.checkpoints if self.checkpoints.is_dir() else self.path)

    def _set_state(self, state: str, **fields: Any) -> None:
        assert state in folders.RUN_STATES
        lost = lost_output()  # by this process; a worker's is there already
        self.update_state(**{"state": state, **fields, **({"lost_output": lost} if lost else {})})
