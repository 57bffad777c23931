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
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from .errors import UserError
from .redaction import redacted

LOCK_RETRY_SECONDS = 0.05  # seconds within which whoever looks whether a lock is held lets go of it


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
def exclusive_lock(lock: Path, busy: Callable[[], str]) -> Iterator[IO[str]]:
    """Nobody else holds this lock meanwhile; the kernel frees a killed one's. Raises UserError with `busy()` where somebody does."""
    with lock.open("a") as file:
        if not try_lock(file):
            time.sleep(LOCK_RETRY_SECONDS)
            if not try_lock(file):
                raise UserError(busy())
        yield file


def try_lock(file: IO[Any]) -> bool:
    """Whether this process has the lock now, or the file system has none. Nobody is waited for."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True


def is_locked(lock: Path) -> bool:
    """Whether somebody holds it now."""
    try:
        with lock.open("r+") as file:  # and none is left behind where its owner has just taken it away
            return not try_lock(file)
    except FileNotFoundError:
        return False


def fsync(path: Path) -> None:
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
    for line in (
        path.read_text(encoding="utf-8").split("\n") if path.exists() else ()
    ):  # splitlines() parts at U+2028 too
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


def relative_to_cwd(path: Path) -> Path:
    """The path as a person in the working directory would write it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def utc_now() -> str:
    """This moment in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
