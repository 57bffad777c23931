"""Atomic writes, locks, JSON and digests: a reader never sees half a file.

Knows paths, bytes and JSON. Refuses to know what any file is for, and never imports torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from .errors import UserError
from .redaction import redact_data

LOCK_RETRY_SECONDS = 0.05  # a process that only checks a lock (`is_locked`) has released it within this time


def write_atomic(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write to a hidden file beside `path`, then rename it: readers see the old file or the new one.

    `durable` also guards against power loss (fsync), at some milliseconds a file.
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
def exclusive_lock(lock: Path, busy_message: Callable[[], str]) -> Iterator[IO[str]]:
    """Hold the lock inside the block; the kernel releases a killed process's.

    Raises UserError with `busy_message()` where another process holds it.
    """
    with lock.open("a") as file:
        if not try_lock(file):
            time.sleep(LOCK_RETRY_SECONDS)
            if not try_lock(file):
                raise UserError(busy_message())
        yield file


def try_lock(file: IO[Any]) -> bool:
    """Take the lock without waiting; True if this process has it now, or if the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True


def is_locked(lock: Path) -> bool:
    """Whether a process holds the lock now."""
    try:
        # "r+" creates no file: the owner may have deleted it a moment ago
        with lock.open("r+") as file:
            return not try_lock(file)
    except FileNotFoundError:
        return False


def fsync(path: Path) -> None:
    """Force a file, or a folder's list of names, to the disk. Raises OSError where the file system cannot."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically and with secrets redacted."""
    write_atomic(path, json.dumps(redact_data(value), indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON in `path`, or None where there is no such file."""
    return json.loads(path.read_text()) if path.exists() else None


def read_kept(path: Path) -> Any:
    """The JSON that a cache keeps in `path`; None where it keeps none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        return read_json(path)
    return None


def keep(path: Path, value: Any) -> None:
    """Keep `value` as JSON for a later command, which does without where the cache is full or read-only."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(value), durable=False)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file; none where it is missing. A line cut off by a crash is skipped."""
    rows: list[dict[str, Any]] = []
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    for line in text.split("\n"):  # not splitlines(), which also splits at U+2028
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def dangling_link(path: Path, *names: str) -> str | None:
    """`it is a link to TARGET, which is not there`, of `path`, a folder above it, or what it holds by these
    `names`; None where no link dangles.
    """
    for place in (path, *path.parents, *(path / name for name in names)):
        if os.path.islink(place) and not os.path.exists(place):
            subject = "it" if place == path else place
            return f"{subject} is a link to {os.readlink(place)}, which is not there"
    return None


def json_digest(value: object) -> str:
    """The sha256, in hex, of a value as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_directory() -> Path:
    """Folder of recomputable files: ALIGNMENT_LAB_CACHE, else alignment_lab in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ALIGNMENT_LAB_CACHE") or Path(home) / "alignment_lab")


def relative_to_cwd(path: Path) -> Path:
    """The path relative to the working directory where it lies below it, else unchanged."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def utc_now() -> str:
    """The current time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
