"""Rows that repeat an earlier one, word for word or nearly.

Two rows are the same where prompt and preferred or only answer are, and the label where they have one,
without case, white space and system prompts; a rejected answer makes no difference, so that a file is cleaned
alike for every method. Of those that are alike the first stays. Memory is a few hundred bytes per row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING

from .overlap import preferred_messages
from .rows import Row
from .words import hash_sequences, split_words, spoken_texts

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray

PERMUTATIONS = 96
SHINGLE = 3  # words of a sequence: a changed word in thirty leaves four fifths of them
MISSED_WEIGHT = 0.9  # a pair that shares no band is missed; one that shares one by chance is only compared
BATCH = 2000  # rows whose sequences are hashed at once
MAX_COMPARED = 50  # rows that stay and share a band, with which a row is compared


def exact_duplicates(keys: Array) -> dict[int, int]:
    """The index of every row that repeats an earlier one, with the index of the first of its kind.

    `keys` [R], uint64: what makes a row the same as another (see `overlap.RowKeys.whole`).
    """
    import numpy as np

    order = np.argsort(keys, kind="stable")
    is_first = np.ones(len(keys), bool)
    is_first[1:] = keys[order][1:] != keys[order][:-1]
    first = order[is_first][np.cumsum(is_first) - 1]
    repeated = ~is_first
    return dict(sorted(zip(order[repeated].tolist(), first[repeated].tolist(), strict=True)))


@dataclass(frozen=True)
class Near:
    """An earlier row that another one repeats nearly, and the share of sequences that both have."""

    first: int
    similarity: float


def near_duplicates(rows: Sequence[Row], threshold: float) -> dict[int, Near]:
    """The index of every row that repeats an earlier one which stays, at a Jaccard similarity of at least
    `threshold` between their sets of three-word sequences; a repeat of its words is one.

    Candidates are found by MinHash and bands (Broder 1997; Leskovec et al., Mining of Massive Datasets, 3.4)
    and then compared exactly: what is found is true, and of pairs at the threshold some are missed. A row
    that calls tools, or has no turn of three words, is none.
    """
    bands = _band_numbers(rows, threshold)
    compare = _Comparison(rows, threshold)
    kept: dict[int, list[int]] = {}  # rows that stay, by band number
    found: dict[int, Near] = {}
    for index, numbers in bands:
        candidates = dict.fromkeys(chain.from_iterable(kept.get(number, ()) for number in numbers))
        near = compare.nearest(index, sorted(candidates))
        if near:
            found[index] = near
            continue
        for number in numbers:
            others = kept.setdefault(number, [])
            if len(others) < MAX_COMPARED:
                others.append(index)
    return found


@dataclass
class _Comparison:
    """Exact similarities; the sequences of the rows that were compared last are remembered."""

    rows: Sequence[Row]
    threshold: float
    sequences: dict[int, frozenset[int]] = field(default_factory=dict)
    limit: int = 2000

    def nearest(self, index: int, candidates: Sequence[int]) -> Near | None:
        """The first of the most similar candidates; None where none reaches the threshold."""
        best: Near | None = None
        for other in candidates:
            similarity = _jaccard(self._of(index), self._of(other))
            if similarity >= self.threshold and (best is None or similarity > best.similarity):
                best = Near(other, similarity)
        return best

    def _of(self, index: int) -> frozenset[int]:
        if index not in self.sequences:
            if len(self.sequences) >= self.limit:
                self.sequences.pop(next(iter(self.sequences)))
            ((_, hashes),) = _sequences([(index, self.rows[index])])
            self.sequences[index] = frozenset(hashes.tolist())
        return self.sequences[index]


def _jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared) if shared else 0.0


def _sequences(rows: Iterable[tuple[int, Row]]) -> Iterator[tuple[int, Array]]:
    """The index of each row with the hashes, uint64, of its word sequences; no row without any."""
    import numpy as np

    iterator = iter(rows)
    while batch := list(islice(iterator, BATCH)):
        turns = [
            (place, split_words(text)) for place, (_, row) in enumerate(batch) for text in spoken_texts(row)
        ]
        places = np.array([place for place, _ in turns], np.int64)
        hashes, owners = hash_sequences([words for _, words in turns], SHINGLE)
        bounds = np.searchsorted(places[owners], np.arange(len(batch) + 1)) if len(hashes) else None
        for place, (index, row) in enumerate(batch):
            if bounds is not None and bounds[place] < bounds[place + 1] and not _calls_tools(row):
                found = hashes[bounds[place] : bounds[place + 1]]
                yield (
                    index,
                    ~found if row.get("label") is False else found,
                )  # a bad answer is like no good one


def _calls_tools(row: Row) -> bool:
    """Whether a row says something that its text does not hold."""
    return "text" not in row and any(message.get("tool_calls") for message in preferred_messages(row))


def _band_numbers(rows: Sequence[Row], threshold: float) -> Iterator[tuple[int, list[int]]]:
    """The indices, in order, of rows that share a band with another, with the numbers of their bands.

    The bands are hashes of 64 bits in arrays, joined by sorting: datasketch's own index keeps a dictionary
    of sets for each, which is gigabytes for a million rows.
    """
    import numpy as np
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold, PERMUTATIONS, weights=(1 - MISSED_WEIGHT, MISSED_WEIGHT))
    empty = MinHash(PERMUTATIONS, hashfunc=int)
    hashed = np.empty((len(rows), index.b), np.uint64)
    present = np.zeros(len(rows), bool)
    for place, hashes in _sequences(enumerate(rows)):
        sketch = empty.copy()
        sketch.update_batch((hashes >> np.uint64(32)).tolist())
        hashed[place] = _hash_bands(sketch.hashvalues[: index.b * index.r].reshape(index.b, index.r))
        present[place] = True
    owners, numbers, next_number = [], [], 0
    for band in range(index.b):
        _, inverse, counts = np.unique(hashed[:, band], return_inverse=True, return_counts=True)
        shared = np.flatnonzero(present & (counts[inverse] > 1))
        owners.append(shared)
        numbers.append(inverse[shared] + next_number)
        next_number += len(counts)
    all_owners, all_numbers = np.concatenate(owners), np.concatenate(numbers)
    order = np.argsort(all_owners, kind="stable")
    all_owners, all_numbers = all_owners[order], all_numbers[order]
    unique, starts = np.unique(all_owners, return_index=True)
    for place, part in zip(unique.tolist(), np.split(all_numbers, starts[1:]), strict=False):
        yield place, part.tolist()


def _hash_bands(bands: Array) -> Array:
    """64 bits of each band: [bands, rows of a band] -> [bands]."""
    import numpy as np

    hashes = np.zeros(len(bands), np.uint64)
    for column in bands.T:
        hashes = (hashes ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
    return hashes
