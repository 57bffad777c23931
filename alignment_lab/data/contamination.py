"""Training rows that hold what a model is measured by: prompts of benchmarks, or held-out rows.

A row leaks where one of its turns is a whole prompt of a benchmark, or where it shares a sequence of 13 words
with one (the convention of GPT-3, Brown et al. 2020, appendix C: lower case, no punctuation). As there, a
sequence in very many training rows is a phrase ("pick your answer from the following options") and tells
nothing: one in more than ten of them and more than 1%. Memory grows with what is measured and with the leaks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from ..config import DataSource, Source
from .overlap import MAX_COMMON_ROWS, MAX_COMMON_SHARE
from .readers import open_rows
from .reasons import DataError
from .rows import Row
from .words import all_texts, hash_sequences, hash_turn, split_words, spoken_texts

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray

BATCH = 1000  # rows whose sequences are hashed at once
USER_ROLES = ("user", "human", "prompter")
# Columns that hold a benchmark's prompts; where a file has none of them, every text of a row is one.
PROMPT_COLUMNS = (
    "prompt", "question", "problem", "instruction", "query", "goal", "ctx", "turns",
    "messages", "conversations", "text", "input",
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """A text that a model is measured by."""

    file: str  # where it stands, as a user would name it
    line: int
    texts: Sequence[str]  # its turns
    whole: bool = True  # a training row that has one of them as a turn leaks, however short it is


@dataclass(frozen=True)
class Leak:
    """A training row that holds a measured text, the first of them where there are several."""

    measured: int  # its index
    files: frozenset[str]  # of all measured texts that the row holds


@dataclass
class Leaks:
    """What `find_leaks` found."""

    rows: dict[int, Leak]  # by the index of the training row
    measured: set[int]  # the indices of the measured texts that are in some training row
    phrases: int  # sequences of measured texts that are in too many training rows to tell anything


def read_benchmark(path: str) -> list[Measured]:
    """The prompts of a file. Raises DataError, in a sentence, where it cannot be read or holds no text."""
    source = Source(DataSource.local, path)
    rows = list(open_rows(source, "train", key=lambda setting: "data.clean.benchmarks") or ())
    columns = {name for row in rows if isinstance(row.value, dict) for name in row.value}
    prompts = [name for name in PROMPT_COLUMNS if name in columns] or sorted(columns)
    found = []
    for row in rows:
        values = [row.value.get(name) for name in prompts] if isinstance(row.value, dict) else [row.value]
        texts = [text for value in values for text in _texts(value) if text.strip()]
        if row.defect is None and texts:
            found.append(Measured(row.file, row.line, texts))
    if not found:
        raise DataError(f"data.clean.benchmarks={path}: holds no text; give a file of prompts.")
    return found


def _texts(value: Any) -> list[str]:
    """A text, those of a list, or what the user says in a conversation."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    if isinstance(value, dict) and (value.get("role") or value.get("from")) in USER_ROLES:
        return _texts(value.get("content") or value.get("value"))
    return []


def heldout_texts(rows: Iterable[Row]) -> list[Measured]:
    """Held-out rows as measured texts: prompt and preferred answer. Their whole turns are compared by the
    split.
    """
    return [Measured("held out", number, spoken_texts(row), whole=False) for number, row in enumerate(rows)]


def find_leaks(rows: Sequence[Row], measured: Sequence[Measured], length: int) -> Leaks:
    """Which of the training rows hold which of the measured texts. `length`: words of a sequence."""
    import numpy as np

    index = _Index(measured, length)
    limit = max(MAX_COMMON_ROWS, MAX_COMMON_SHARE * len(rows))
    counts = np.zeros(len(index.hashes), np.int64)  # rows that hold each sequence
    owners: list[Array] = []
    places: list[Array] = []
    iterator, first = iter(rows), 0
    while batch := list(islice(iterator, BATCH)):
        row_numbers, found = index.look_up(batch)
        pairs = np.unique(np.stack([row_numbers + first, found]), axis=1)
        counts += np.bincount(pairs[1], minlength=len(counts))
        telling = index.is_turn[pairs[1]] | (counts[pairs[1]] <= limit)
        owners.append(pairs[0][telling])
        places.append(pairs[1][telling])
        first += len(batch)
    all_owners, all_places = (
        np.concatenate([*owners, []]).astype(int),
        np.concatenate([*places, []]).astype(int),
    )
    telling = index.is_turn[all_places] | (counts[all_places] <= limit)
    leaks: dict[int, set[int]] = {}
    for owner, place in zip(all_owners[telling].tolist(), all_places[telling].tolist(), strict=True):
        leaks.setdefault(owner, set()).update(index.texts_of(place))
    return Leaks(
        {
            owner: Leak(min(texts), frozenset(measured[text].file for text in texts))
            for owner, texts in leaks.items()
        },
        set().union(*leaks.values()) if leaks else set(),
        int((~index.is_turn & (counts > limit)).sum()),
    )


def shared_passage(row: Row, measured: Measured, length: int) -> str:
    """The first words that both have, or the whole turn: what an example of a leak shows."""
    turns = [split_words(text) for text in all_texts(row)]
    known = [split_words(text) for text in measured.texts]
    whole = {b" ".join(words) for words in known}
    for words in turns:
        if measured.whole and b" ".join(words) in whole:
            return b" ".join(words).decode(errors="replace")
    sequences = {tuple(part) for words in known for part in _windows(words, length)}
    shared = (part for words in turns for part in _windows(words, length) if tuple(part) in sequences)
    return b" ".join(next(shared, [])).decode(errors="replace")


def _windows(words: Sequence[bytes], length: int) -> Iterator[Sequence[bytes]]:
    return (words[start : start + length] for start in range(len(words) - length + 1))


class _Index:
    """The sequences and whole turns of measured texts, as sorted hashes."""

    def __init__(self, measured: Sequence[Measured], length: int) -> None:
        import numpy as np

        self.length = length
        turns = [(number, split_words(text)) for number, each in enumerate(measured) for text in each.texts]
        numbers = np.array([number for number, _ in turns], np.int64)
        hashes, owners = hash_sequences([words for _, words in turns], length)
        whole = [(number, words) for number, words in turns if words and measured[number].whole]
        turn_hashes = np.array([hash_turn(words) for _, words in whole], np.uint64)
        all_hashes = np.concatenate([hashes, turn_hashes])
        all_texts_ = np.concatenate([numbers[owners], np.array([number for number, _ in whole], np.int64)])
        self.has_turns = bool(whole)
        self.hashes, inverse = np.unique(all_hashes, return_inverse=True)  # [sequences and turns]
        self.is_turn = np.isin(self.hashes, turn_hashes)
        order = np.argsort(inverse, kind="stable")
        self._texts = all_texts_[order]
        self._starts = np.searchsorted(inverse[order], np.arange(len(self.hashes) + 1))

    def texts_of(self, place: int) -> list[int]:
        """The measured texts that hold the sequence or turn at `place` in `hashes`."""
        found: list[int] = self._texts[self._starts[place] : self._starts[place + 1]].tolist()
        return found

    def look_up(self, rows: Sequence[Row]) -> tuple[Array, Array]:
        """(row, place in `hashes`) of every sequence and turn of the rows that is known."""
        import numpy as np

        turns = [(number, split_words(text)) for number, row in enumerate(rows) for text in all_texts(row)]
        numbers = np.array([number for number, _ in turns], np.int64)
        hashes, owners = hash_sequences([words for _, words in turns], self.length)
        owners = numbers[owners]
        if self.has_turns:
            turn_hashes = np.fromiter((hash_turn(words) for _, words in turns), np.uint64, len(turns))
            hashes, owners = np.concatenate([hashes, turn_hashes]), np.concatenate([owners, numbers])
        if not len(self.hashes):
            return owners[:0], owners[:0]
        places = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        known = self.hashes[places] == hashes
        return owners[known], places[known]


def count_by_file(leaks: Leaks) -> dict[str, int]:
    """Training rows by the benchmark file that they hold prompts of."""
    found: dict[str, int] = {}
    for file in sorted(chain.from_iterable(leak.files for leak in leaks.rows.values())):
        found[file] = found.get(file, 0) + 1
    return found
