"""Reference log-probabilities on disk, stored per example under a hash of its token ids.

Token ids in, float32 nats per completion token out. Refuses to know a model, a tokenizer, a loss and torch:
the caller brings the function that scores, and the folder's name states what the numbers depend on besides
the ids (weights, dtype).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..runtime.errors import UserError
from ..runtime.files import fsync, try_lock, write_atomic
from ..runtime.progress import Progress
from .reference_shard import Array, encode_shard, open_shard

Example = tuple[Sequence[int], Sequence[int]]  # prompt ids, completion ids
Score = Callable[
    [Sequence[Example]], Sequence[Array]
]  # a block of N examples -> N arrays of [completion tokens] nats

MAX_MAPPED_FILES = 512  # shards after the first 512 are read, too
LOCK_POLL_SECONDS = 0.25  # between two looks at what another process computes
STALE_SECONDS = 3600.0  # an unpublished file this old belongs to no living process


@dataclass(frozen=True)
class FetchResult:
    """One read-only float32 array of [completion tokens] nats per example.

    Each was a hit, or was scored in this call.
    """

    logps: list[Array]
    hits: int
    scored: int


def example_key(prompt: Sequence[int], completion: Sequence[int]) -> bytes:
    """16 bytes that identify a prompt and a completion: the hash of both lengths, then all ids."""
    return _ids_digest((len(prompt), len(completion)), prompt, completion)


def plan_blocks(examples: Sequence[Example], indices: Iterable[int], max_tokens: int) -> list[list[int]]:
    """The given indices of `examples` in blocks of at most `max_tokens`, longest first.

    A prompt counts once a block.

    Completions of one prompt share a block; only a group that is larger than a block is split. An example is
    never split.
    """
    prompts: dict[bytes, list[tuple[int, int, int]]] = {}  # (-length, index, length of the prompt) by answer
    for index in indices:
        prompt, answer = examples[index]
        prompts.setdefault(_ids_digest(prompt), []).append((-len(answer), index, len(prompt)))
    groups = sorted(map(sorted, prompts.values()), key=lambda group: (group[0][0] - group[0][2], group[0]))
    blocks: list[list[int]] = []
    room = -1
    for group in groups:
        prompt_length, lengths = group[0][2], [-length for length, _, _ in group]
        if prompt_length + sum(lengths) > room:
            blocks.append([])
            room = max_tokens
        room -= prompt_length
        for (_, index, _), length in zip(group, lengths, strict=True):
            if length > room and blocks[-1]:  # this prompt has more completions than a block holds
                blocks.append([])
                room = max_tokens - prompt_length
            blocks[-1].append(index)
            room -= length
    return blocks


def check_agreement(
    stored: Sequence[Array], recomputed: Sequence[Array], *, tolerance: float, folder: Path
) -> None:
    """Compare stored and recomputed log-probabilities by each example's mean difference over tokens.

    Raises UserError where it exceeds `tolerance` nats or is NaN.
    """
    pairs = list(zip(stored, recomputed, strict=True))
    assert all(old.shape == new.shape for old, new in pairs)
    worst = np.max([0.0, *(float(np.abs(old - new).mean()) for old, new in pairs if old.size)])
    if not worst <= tolerance:
        raise UserError(
            f"The reference log-probabilities in {folder} are off by {worst:.3g} nats per token from those "
            f"of this model, more than {tolerance:g}: they were made by something else, so delete that "
            "folder and they are computed again."
        )


class ReferenceCache:
    """The shards in one folder. A published shard is never changed or deleted, so readers need no lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._seen_files: set[str] = set()  # names of shards that were opened
        self._index: dict[bytes, tuple[Array, Array, int]] = {}  # key -> (ends, logps, row)

    def fetch(
        self,
        examples: Sequence[Example],
        score: Score,
        *,
        progress: Progress = iter,
        publish_seconds: float = 30.0,
        block_tokens: int = 16384,
        notify: Callable[[str], None] = lambda _: None,
    ) -> FetchResult:
        """The log-probabilities of the examples, in order.

        `score` computes those that are not stored, block by block.

        Of several processes one scores while the others wait: `score` must not need another process that
        fetches here. A killed process loses `publish_seconds` of work and its current block. Raises UserError
        where a score is not finite or the folder cannot be written, AssertionError where `score` gives
        another number of tokens.
        """
        keys = [example_key(*example) for example in examples]
        scored = 0
        self._refresh()
        if missing := self._missing(keys):
            with self._exclusive(missing, _stored_bytes(examples, missing.values()), notify):
                missing = self._missing(keys)
                self._compute(examples, missing, score, progress, publish_seconds, block_tokens)
            scored = len(missing)
            self._refresh()
        if self._missing(keys):
            raise UserError(
                f"A file just written to {self.folder} cannot be read back: check that disk, and start again."
            )
        return FetchResult([self._read(key) for key in keys], len(keys) - scored, scored)

    def _missing(self, keys: Iterable[bytes]) -> dict[bytes, int]:
        """Key -> index of an example, for every key that no shard has."""
        return {key: index for index, key in enumerate(keys) if key not in self._index}

    def _read(self, key: bytes) -> Array:
        ends, logps, row = self._index[key]
        return logps[ends[row - 1] if row else 0 : ends[row]]

    def _refresh(self) -> None:
        """Open the shards that are new since the last call.

        Rename those that are damaged or of another folder.
        """
        for path in sorted(self.folder.glob("[!.]*.safetensors")):
            if path.name in self._seen_files:
                continue
            try:
                shard = open_shard(path, self.folder.name, mapped=len(self._seen_files) < MAX_MAPPED_FILES)
            except OSError:  # renamed by another process, or not readable
                continue
            self._seen_files.add(path.name)
            if shard is None:
                with contextlib.suppress(OSError):
                    path.rename(path.with_name(f"{path.name}.damaged"))
                continue
            keys, ends, logps = shard
            self._index |= {key: (ends, logps, row) for row, key in enumerate(keys.view("V16").tolist())}

    @contextlib.contextmanager
    def _exclusive(self, keys: Iterable[bytes], needed: int, notify: Callable[[str], None]) -> Iterator[None]:
        """Wait until no other process computes here, or until others have published all of `keys`.

        The kernel releases the lock of a killed process.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / ".lock").open("ab")
        except OSError as error:
            raise self._not_writable(error, needed) from None
        with file:
            if not try_lock(file):
                notify(
                    f"Another process computes reference log-probabilities in {self.folder}: waiting for it."
                )
                while not try_lock(file) and self._missing(keys):
                    time.sleep(LOCK_POLL_SECONDS)
                    self._refresh()
            self._refresh()
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    # closing is not enough: a child that `score` started may have the file open too
                    fcntl.flock(file, fcntl.LOCK_UN)

    def _compute(
        self,
        examples: Sequence[Example],
        missing: Mapping[bytes, int],
        score: Score,
        progress: Progress,
        publish_seconds: float,
        block_tokens: int,
    ) -> None:
        """Score and publish what is missing."""
        self._delete_stale_files()
        keys = {index: key for key, index in missing.items()}
        needed = _stored_bytes(examples, keys)
        unpublished: dict[bytes, Array] = {}
        published_at = time.monotonic()
        try:
            for block in progress(plan_blocks(examples, keys, block_tokens)) if keys else ():
                unpublished |= zip(
                    (keys[index] for index in block), _score_block(examples, block, score), strict=True
                )
                if time.monotonic() - published_at >= publish_seconds:
                    # emptied first: a shard that could not be written is not tried again below
                    shard, unpublished = unpublished, {}
                    self._publish(shard, needed)
                    published_at = time.monotonic()
        finally:  # also where a later block failed
            if unpublished:
                self._publish(unpublished, needed)

    def _delete_stale_files(self) -> None:
        """Delete what killed processes left half written."""
        for partial in self.folder.glob(".*.safetensors.*.partial"):
            with contextlib.suppress(OSError):
                if time.time() - partial.stat().st_mtime > STALE_SECONDS:
                    partial.unlink()

    def _publish(self, logps: Mapping[bytes, Array], needed: int) -> None:
        """Write one shard; it gets its name only when it is complete and on the disk."""
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        try:
            write_atomic(path, encode_shard(logps, self.folder.name))
        except OSError as error:
            for partial in self.folder.glob(f".{path.name}.*"):
                partial.unlink(missing_ok=True)
            raise self._not_writable(error, needed) from None
        with contextlib.suppress(OSError):  # where a folder cannot be synced, the name reaches the disk later
            fsync(self.folder)

    def _not_writable(self, error: OSError, needed: int) -> UserError:
        return UserError(
            f"Reference log-probabilities cannot be stored in {self.folder} ({error.strerror}): "
            f"make it writable, with {needed / 1e6:.1f} MB free, or let ALIGNMENT_LAB_CACHE name a folder on "
            "another disk; what was stored before stays valid."
        )


def _stored_bytes(examples: Sequence[Example], indices: Iterable[int]) -> int:
    """Disk space for these examples, at least 0.1 MB."""
    return max(10**5, sum(24 + 4 * len(examples[index][1]) for index in indices))


def _ids_digest(*parts: Sequence[int]) -> bytes:
    return hashlib.blake2b(
        b"".join(np.asarray(ids, "<i4").tobytes() for ids in parts), digest_size=16
    ).digest()


def _score_block(examples: Sequence[Example], block: Sequence[int], score: Score) -> list[Array]:
    """The block's scores as float32 arrays of the right length. Raises UserError where one is not finite."""
    scores = [np.asarray(row, np.float32) for row in score([examples[index] for index in block])]
    shapes, expected = [row.shape for row in scores], [(len(examples[index][1]),) for index in block]
    assert shapes == expected, f"score gave {shapes} for completions of {expected} tokens"
    nonfinite = sorted(index for index, row in zip(block, scores, strict=True) if not np.isfinite(row).all())
    if nonfinite:
        more = f" and {len(nonfinite) - 10} more" if len(nonfinite) > 10 else ""
        rows = ", ".join(map(str, nonfinite[:10])) + more
        raise UserError(
            f"The reference gives log-probabilities that are not finite for the examples {rows} "
            "(counted from 0): look at its weights, or compute in float32."
        )
    return scores
