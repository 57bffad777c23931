"""The sha256 of files. That of a large one is kept in the cache, by its path, size, times and inode: a file
that nobody touched is read once on a machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .files import cache_directory, file_digest, keep, read_kept

LARGE_BYTES = 16 * 2**20  # a smaller file is hashed in the time that it takes to look its digest up
RECENT_NS = 2 * 10**9  # a file written this shortly ago may change again within the resolution of its times
MAX_THREADS = 8

Facts = tuple[int, ...]  # size, times and inode of a file
_seen: dict[tuple[Path, Facts], str] = {}  # what this process has read


def digest_files(paths: Sequence[Path], *, read_large: bool = True) -> list[str | None]:
    """The sha256 of each file, in hex, several at a time.

    Without `read_large` None for a large file whose digest is not kept.
    """
    if not paths:
        return []
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1, len(paths))) as pool:
        return list(pool.map(lambda path: _digest(path, read_large=read_large), paths))


def _digest(path: Path, *, read_large: bool) -> str | None:
    facts = _facts(path)
    is_large = facts[0] >= LARGE_BYTES
    known = _seen.get((path, facts)) or (_kept(path, facts) if is_large else None)
    if known or (is_large and not read_large):
        return known
    digest = file_digest(path)
    settled = time.time_ns() - max(facts[1:3]) > RECENT_NS and _facts(path) == facts
    if settled:
        _seen[path, facts] = digest
        if is_large:
            keep(_entry(path), {"file": facts, "sha256": digest})
    return digest


def _facts(path: Path) -> Facts:
    """The change time is the one that no program can set back."""
    status = path.stat()
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def _kept(path: Path, facts: Facts) -> str | None:
    with contextlib.suppress(KeyError, TypeError):
        entry = read_kept(_entry(path))
        if tuple(entry["file"]) == facts:
            return str(entry["sha256"])
    return None


def _entry(path: Path) -> Path:
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    return cache_directory() / "digests" / f"{name}.json"
