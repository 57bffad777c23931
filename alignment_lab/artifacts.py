"""The run directory: where everything lies, written so that a reader never sees half a file.

Knows paths, JSON and atomic writes. Refuses to know what a model, a method or a metric means, and never imports torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import yaml

from .errors import UserError
from .secrets import redacted

LOOK = 0.05  # seconds within which whoever looks whether a lock is held lets go of it
STATES = ("queued", "running", "interrupted", "finished", "failed")  # interrupted: the same command goes on


def write_atomic(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write `content` to `path` by way of a hidden neighbour and a rename: readers see the old file or the new one.

    Durable: also after a machine lost its power, at some milliseconds a file.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def alone(lock: Path, busy: Callable[[], str]) -> Iterator[IO[str]]:
    """Nobody else holds this lock meanwhile; the kernel frees a killed one's. Raises UserError with `busy()` where somebody does."""
    with lock.open("a") as file:
        if not locked(file):
            time.sleep(LOOK)
            if not locked(file):
                raise UserError(busy())
        yield file


def locked(file: IO[Any]) -> bool:
    """Whether this process has the lock now, or the file system has none. Nobody is waited for."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True


def held(lock: Path) -> bool:
    """Whether somebody holds it now."""
    try:
        with lock.open("r+") as file:  # and none is left behind where its owner has just taken it away
            return not locked(file)
    except FileNotFoundError:
        return False


def sync(path: Path) -> None:
    """Force a file, or what a folder lists, to the disk. Raises OSError where the file system cannot."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically and without secrets."""
    write_atomic(path, json.dumps(redacted(value), indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON in `path`, or None where there is no such file."""
    return json.loads(path.read_text()) if path.exists() else None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file; none where it is missing. A line that was cut off by a crash is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else ():  # splitlines() parts at U+2028 too
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def publish_directory(partial: Path, final: Path) -> None:
    """Move a complete directory into place, replacing what was there."""
    if final.exists():
        shutil.rmtree(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(final)


def file_digest(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_directory() -> Path:
    """Where the lab keeps what it can make again: ALIGNMENT_LAB_CACHE, else alignment_lab in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ALIGNMENT_LAB_CACHE") or Path(home) / "alignment_lab")


def from_here(path: Path) -> Path:
    """The path as a person in the working directory would write it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def now() -> str:
    """This moment in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


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

    def queue(self, *, run_id: str, spec: str) -> None:
        """Set the directory up for a job that will begin later: spec.yaml, and run.json in state queued."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomic(self.spec_file, spec, durable=False)  # of thousands; the command would make them again
        state = {**self.state(), "state": "queued", "id": run_id, "error": None}
        write_atomic(self.state_file, json.dumps(redacted(state), indent=2) + "\n", durable=False)

    def begin(self, *, run_id: str, spec: str) -> None:
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
            "running", id=run_id, attempts=attempts, host=socket.gethostname(), pid=os.getpid(), started=now(), ended=None, error=None
        )

    def note(self, **facts: Any) -> None:
        """Add to what run.json says of this attempt."""
        write_json(self.state_file, {**self.state(), **facts})

    def finish(self) -> None:
        """Close the directory: the run reached its end."""
        shutil.rmtree(self.partial, ignore_errors=True)
        self._set_state("finished", ended=now())

    def fail(self, error: str, *, resumable: bool = False) -> None:
        """Close the directory: the run stopped, and why. Resumable: nothing is wrong with it. A full disk keeps the state that was."""
        shutil.rmtree(self.partial, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._set_state("interrupted" if resumable else "failed", ended=now(), error=error)

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Nobody else runs in this directory meanwhile. Raises UserError where somebody does; the kernel frees a killed one's lock."""
        self.path.mkdir(parents=True, exist_ok=True)
        with alone(self.lock, self._busy):
            try:
                yield
            finally:
                self.lock.unlink(missing_ok=True)

    def _busy(self) -> str:
        state = self.state()
        who = f"process {state.get('pid')} on {state.get('host')}"
        return f"{self.path}: {who} runs there now; wait for it, end it, or give another directory."

    def log(self, row: dict[str, Any]) -> None:
        """Append one logged step to metrics.jsonl, as one write."""
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rewind(self, step: int) -> None:
        """Forget the logged steps behind `step`: an attempt that starts there logs them again."""
        if self.metrics_file.exists():
            kept = [row for row in self.metrics() if row["step"] <= step]
            write_atomic(self.metrics_file, "".join(json.dumps(row) + "\n" for row in kept))

    def write_samples(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write samples.jsonl."""
        write_atomic(self.samples_file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def discard(self) -> None:
        """Take back what this process began, where nothing came about: its own files, and the directories that are then empty.

        Never a file that was there before, a record of another attempt, or the working directory.
        """
        state = self.state()
        if self.metrics_file.exists() or state.get("attempts", 1) > 1 or state.get("pid", os.getpid()) != os.getpid():
            return
        if state:
            for file in (self.spec_file, self.provenance_file, self.state_file):
                file.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.path, *self.path.parents[:2]):
            if folder.is_dir() and not any(folder.iterdir()) and folder.resolve() != Path.cwd():
                folder.rmdir()

    def _set_state(self, state: str, **facts: Any) -> None:
        assert state in STATES
        self.note(state=state, **facts)


def runs_under(folder: Path) -> Iterator[RunDirectory]:
    """Every run in `folder`, itself included, in the order of their names: what holds a run.json is a run."""
    for file in sorted(folder.rglob("run.json")):
        if not any(part.startswith(".") for part in file.relative_to(folder).parts):  # a sweep's own
            yield RunDirectory(file.parent)
