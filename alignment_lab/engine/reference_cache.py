"""Reference log-probabilities on disk, per example under a key of its content: computed once for every run that needs them.

Token ids in, float32 nats per completion token out. It refuses to know a model, a tokenizer, a loss and torch: whoever fetches
brings the function that scores, and the folder's own name says what the numbers depend on besides the ids (weights, dtype).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import mmap
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from ..runtime.errors import UserError
from ..runtime.files import fsync, try_lock, write_atomic

Example = tuple[Sequence[int], Sequence[int]]  # prompt ids, completion ids
Array = NDArray[Any]
Score = Callable[
    [Sequence[Example]], Sequence[Array]
]  # a block of N examples -> N arrays of [completion tokens] nats
Progress = Callable[[Sequence[Any]], Iterable[Any]]  # shows how far along a loop over these steps is

TENSORS = {
    "keys": "<u1",
    "ends": "<i8",
    "logps": "<f4",
}  # of a shard: [N, 16] bytes, [N] tokens up to here, [ends[-1]] nats
SMALL, MAPPED = (
    2**20,
    512,
)  # bytes, files: a mapping holds a file descriptor, so small shards and those past the 512th are read
POLL = 0.25  # seconds between two looks at what another process builds
STALE = 3600.0  # seconds after which an unpublished file belongs to nobody who lives


@dataclass(frozen=True)
class FetchResult:
    """One float32 array of [completion tokens] nats per example, read-only. Every example is a hit, or was scored in this call."""

    logps: list[Array]
    hits: int
    scored: int


def example_key(prompt: Sequence[int], completion: Sequence[int]) -> bytes:
    """16 bytes that stand for these ids, cut at this place: both lengths, then all ids."""
    seam = _int32((len(prompt), len(completion)))
    return hashlib.blake2b(seam + _int32(prompt) + _int32(completion), digest_size=16).digest()


def blocks(examples: Sequence[Example], places: Iterable[int], tokens: int) -> list[list[int]]:
    """The places of `examples`, longest first, in blocks of at most `tokens`, where a prompt counts once for its completions.

    Completions of one prompt share a block: only what is larger than a block by itself is cut. An example is never cut.
    """
    groups: dict[bytes, list[int]] = {}
    for place in sorted(places, key=lambda place: (-len(examples[place][1]), place)):
        groups.setdefault(_int32(examples[place][0]), []).append(place)
    found: list[list[int]] = []
    room = -1
    for group in sorted(groups.values(), key=lambda group: -sum(map(len, examples[group[0]]))):
        prompt, lengths = len(examples[group[0]][0]), [len(examples[place][1]) for place in group]
        if prompt + sum(lengths) > room:
            found.append([])
            room = tokens
        room -= prompt
        for place, length in zip(group, lengths, strict=True):
            if length > room and found[-1]:  # this prompt has more completions than a block holds
                found.append([])
                room = tokens - prompt
            found[-1].append(place)
            room -= length
    return found


def check_agreement(
    stored: Sequence[Array], live: Sequence[Array], *, tolerance: float, folder: Path
) -> None:
    """UserError where an example's |stored - live|, averaged over its tokens, exceeds `tolerance` nats or is not a number."""
    assert all(a.shape == b.shape for a, b in zip(stored, live, strict=True))
    worst = np.max([0.0, *(float(np.abs(a - b).mean()) for a, b in zip(stored, live, strict=True) if a.size)])
    if not worst <= tolerance:
        raise UserError(
            f"The reference log-probabilities in {folder} are off by {worst:.3g} nats per token from what this model gives, more than "
            f"{tolerance:g}: they were made by something else, so delete that folder and they are computed again."
        )


class ReferenceCache:
    """The shards in one folder. A shard is never changed or deleted once it has its name, so readers need no lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._names: set[str] = set()  # of the files that were looked at
        self._index: dict[bytes, tuple[Array, Array, int]] = {}  # key -> (ends, logps, row)

    def fetch(
        self,
        examples: Sequence[Example],
        score: Score,
        *,
        progress: Progress = iter,
        publish_seconds: float = 30.0,
        block_tokens: int = 16384,
        notice: Callable[[str], None] = lambda _: None,
    ) -> FetchResult:
        """What is stored of the examples, and what is not after `score` was asked for it, block by block; in their order.

        Of several processes one scores while the others wait: `score` must not need another process that fetches here. A
        killed one loses `publish_seconds` of work and the block that it was at. UserError where a score is not finite, or the
        folder cannot be written; AssertionError where `score` gives another number of tokens.
        """
        keys = [example_key(*example) for example in examples]
        scored = 0
        self._refresh()
        if missing := self._missing(keys):
            with self._turn(missing, _bytes(examples, missing.values()), notice):
                missing = self._missing(keys)
                self._build(examples, missing, score, progress, publish_seconds, block_tokens)
            scored = len(missing)
            self._refresh()
        if self._missing(keys):
            raise UserError(
                f"What was just written to {self.folder} does not read back: check that disk, and start again."
            )
        return FetchResult([self._read(key) for key in keys], len(keys) - scored, scored)

    def _missing(self, keys: Iterable[bytes]) -> dict[bytes, int]:
        """A place of every key that no shard has."""
        return {key: place for place, key in enumerate(keys) if key not in self._index}

    def _read(self, key: bytes) -> Array:
        ends, logps, row = self._index[key]
        return logps[ends[row - 1] if row else 0 : ends[row]]

    def _refresh(self) -> None:
        """Look at the shards that have come since the last time; set aside what is damaged or was made for another folder."""
        for path in sorted(self.folder.glob("[!.]*.safetensors")):
            if path.name in self._names:
                continue
            try:
                shard = _opened(path, self.folder.name, mapped=len(self._names) < MAPPED)
            except OSError:  # set aside by another process, or not ours to read
                continue
            self._names.add(path.name)
            if shard is None:
                with contextlib.suppress(OSError):
                    path.rename(path.with_name(f"{path.name}.damaged"))
                continue
            keys, ends, logps = shard
            self._index |= {key: (ends, logps, row) for row, key in enumerate(keys.view("V16").tolist())}

    @contextlib.contextmanager
    def _turn(self, keys: Iterable[bytes], needed: int, notice: Callable[[str], None]) -> Iterator[None]:
        """Wait until nobody builds here, or until others have published all of `keys`. The kernel frees a killed one's lock."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / ".lock").open("ab")
        except OSError as error:
            raise self._unwritable(error, needed) from None
        with file:
            if not try_lock(file):
                notice(
                    f"Another process computes reference log-probabilities in {self.folder}: waiting for it."
                )
                while not try_lock(file) and self._missing(keys):
                    time.sleep(POLL)
                    self._refresh()
            self._refresh()
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    fcntl.flock(
                        file, fcntl.LOCK_UN
                    )  # closing is not enough where a child that `score` started has the file too

    def _build(
        self,
        examples: Sequence[Example],
        missing: Mapping[bytes, int],
        score: Score,
        progress: Progress,
        publish_seconds: float,
        block_tokens: int,
    ) -> None:
        """Score and publish what is missing."""
        names = {place: key for key, place in missing.items()}
        done: dict[bytes, Array] = {}
        for partial in self.folder.glob(".*.partial"):  # what killed processes left half written
            with contextlib.suppress(OSError):
                if time.time() - partial.stat().st_mtime > STALE:
                    partial.unlink()
        published = time.monotonic()
        try:
            for block in progress(blocks(examples, names, block_tokens)) if names else ():
                done |= zip((names[place] for place in block), _scored(examples, block, score), strict=True)
                if time.monotonic() - published >= publish_seconds:
                    batch, done = (
                        done,
                        {},
                    )  # emptied first: what could not be written is not tried again below
                    self._publish(batch, _bytes(examples, names))
                    published = time.monotonic()
        finally:  # also where a later block failed
            if done:
                self._publish(done, _bytes(examples, names))

    def _publish(self, done: Mapping[bytes, Array], needed: int) -> None:
        """Write one shard: it has its name only when it is whole and on the disk."""
        tensors: dict[str, Array] = {
            "keys": np.frombuffer(b"".join(done), np.uint8).reshape(-1, 16),
            "ends": np.cumsum([len(row) for row in done.values()], dtype=np.int64),
            "logps": np.concatenate(list(done.values())),
        }
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        try:
            write_atomic(path, save(tensors, {"digest": _digest(self.folder.name, tensors)}))
        except OSError as error:
            for partial in self.folder.glob(f".{path.name}.*"):
                partial.unlink(missing_ok=True)
            raise self._unwritable(error, needed) from None
        with contextlib.suppress(OSError):  # where folders cannot be synced, the name gets there later
            fsync(self.folder)

    def _unwritable(self, error: OSError, needed: int) -> UserError:
        return UserError(
            f"Reference log-probabilities cannot be stored in {self.folder} ({error.strerror}): make it writable, with {needed / 1e6:.1f} "
            "MB free, or let ALIGNMENT_LAB_CACHE name a folder on another disk; what was stored before stays good."
        )


def _bytes(examples: Sequence[Example], places: Iterable[int]) -> int:
    """What these examples take on disk, at least 0.1 MB."""
    return max(10**5, sum(24 + 4 * len(examples[place][1]) for place in places))


def _int32(ids: Sequence[int]) -> bytes:
    return np.asarray(ids, "<i4").tobytes()


def _scored(examples: Sequence[Example], block: Sequence[int], score: Score) -> list[Array]:
    """The block's scores as float32 arrays of the right length, all finite."""
    found = [np.asarray(row, np.float32) for row in score([examples[place] for place in block])]
    lengths = [(len(examples[place][1]),) for place in block]
    assert [row.shape for row in found] == lengths, (
        f"score gave {[row.shape for row in found]} for completions of {lengths} tokens"
    )
    broken = sorted(place for place, row in zip(block, found, strict=True) if not np.isfinite(row).all())
    if broken:
        rows = ", ".join(map(str, broken[:10])) + (
            f" and {len(broken) - 10} more" if len(broken) > 10 else ""
        )
        raise UserError(
            f"The reference gives log-probabilities that are not finite for the examples {rows} (counted from 0): look at its weights, or "
            "compute in float32."
        )
    return found


def _opened(path: Path, folder: str, *, mapped: bool) -> tuple[Array, Array, Array] | None:
    """(keys, ends, logps) of a shard, memory-mapped unless it is small; None where it is not what was written for `folder`."""
    data: mmap.mmap | bytes
    with path.open("rb") as file:
        mapped = mapped and os.fstat(file.fileno()).st_size >= SMALL
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if mapped else file.read()
    try:
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        payload = np.frombuffer(data, np.uint8)[start:]
        parts = {
            name: payload[slice(*header[name]["data_offsets"])].view(dtype) for name, dtype in TENSORS.items()
        }
        if header["__metadata__"]["digest"] != _digest(folder, parts):
            return None
    except (
        Exception
    ):  # what other bytes make these lines do has no end: a dozen types of error, all with one meaning
        return None
    if isinstance(data, mmap.mmap):
        data.madvise(mmap.MADV_DONTNEED)  # the digest read every page
    return parts["keys"], parts["ends"], parts["logps"]


def _digest(folder: str, tensors: Mapping[str, Array]) -> str:
    """A hash of all that a shard says, and of the folder that it says it in."""
    digest = hashlib.sha256(folder.encode())
    for name in TENSORS:
        digest.update(f"\n{name} {tensors[name].nbytes}\n".encode())
        digest.update(tensors[name].data)
    return digest.hexdigest()
