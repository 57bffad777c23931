"""Tokenized rows: their columns, what is counted of them, and many of them as arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

from .reasons import BadRow
from .rows import Row
from .table import Chained, Ragged, Rows, RowSequence, join_ragged

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray

ANSWER_COLUMNS = ("chosen_ids", "rejected_ids", "completion_ids")
ID_COLUMNS = ("prompt_ids", *ANSWER_COLUMNS, "input_ids")
TOKEN_COLUMNS = (*ID_COLUMNS, "labels", "seq_lengths")  # the columns that tokenization adds, all of integers
TRUNCATED, ANSWERS, ANSWERS_TRAINED = "truncated", "answers", "answers trained"  # keys of Tokenized.counts
COUNTED = (TRUNCATED, ANSWERS, ANSWERS_TRAINED)
SHORTENED = "rows lose the beginning of their prompt at data.max_length"
SPLIT, PARTS = "conversations in parts", "parts of conversations"
CHUNK = 2**22  # ids that are looked at at a time


@dataclass
class Tokenized:
    """What became of rows that were tokenized: one may become several sequences; texts share blocks."""

    rows: Any = field(default_factory=list)  # a sequence of rows with the columns of tokens
    indices: list[int] = field(
        default_factory=list
    )  # of the row given that each was made from; of blocks none
    # of each row, in the order of COUNTED: those of the row that it was made from, at the first of several
    # sequences and 0 at the others; of blocks none. A list, or an array [rows, 3]
    counted: Any = field(default_factory=list, compare=False)
    dropped: list[tuple[int, BadRow]] = field(default_factory=list)  # (index of the row given, why)
    # truncated: rows that were cut at max_length; answers, answers trained: those of the rows that were kept;
    # conversations in parts, and their parts: those that the template makes several sequences of; any other
    # key says what was seen in as many rows or answers
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, index: int, rows: Iterable[Row], truncated: bool, answers: int, trained: int) -> None:
        """Rows with tokens, all made from the row given at `index`, and what is counted of that."""
        of_row = (int(truncated), answers, trained)
        self.counts.update(dict(zip(COUNTED, of_row, strict=True)))
        for row in rows:
            self.rows.append(row)
            self.indices.append(index)
            self.counted.append(of_row)
            of_row = (0, 0, 0)

    def count_shortened(self, before: int, after: int) -> None:
        """Count a row whose prompt had so many tokens, and has so many."""
        if after < before:
            self.counts[SHORTENED] += 1

    def drop(self, index: int, bad_row: BadRow) -> None:
        """Leave out the row given at `index`."""
        self.dropped.append((index, bad_row))


class TokenRows(RowSequence):
    """Rows with columns of token ids, int32 arrays that may be mapped from a file: lists of integers are made
    when a row is taken, and kept by nobody here.

    `sources` are the rows as they were converted, and `owners` the index of each row's among them; blocks of
    texts have none. Cheap: `len`, a slice, and what this module counts.
    """

    def __init__(
        self,
        columns: Mapping[str, Ragged],
        sources: Sequence[Row],
        owners: Array | None,
        positions: Array | None = None,
    ) -> None:
        import numpy

        self.columns, self.sources, self.owners = columns, sources, owners
        total = len(next(iter(columns.values())).ends) if columns else 0
        self.positions = numpy.arange(total) if positions is None else positions
        self._starts = {name: ragged.starts for name, ragged in columns.items()}

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> TokenRows: ...
    def __getitem__(self, index: int | slice) -> Row | TokenRows:
        if isinstance(index, slice):
            return TokenRows(self.columns, self.sources, self.owners, self.positions[index])
        position = int(self.positions[index])
        row = {} if self.owners is None else self.sources[int(self.owners[position])]
        ids = {
            name: ragged.values[self._starts[name][position] : ragged.ends[position]].tolist()
            for name, ragged in self.columns.items()
        }
        return {**row, **ids}

    @property
    def converted(self) -> Rows | None:
        """The rows as they were converted, where these have numbers."""
        if self.owners is None or not isinstance(self.sources, Rows):
            return None
        return self.sources.select(self.owners[self.positions])

    def lengths(self, name: str) -> Array:
        """How many ids each row has in a column."""
        return self.columns[name].lengths[self.positions]

    def token_counts(self) -> Array:
        """Tokens of each row; a preference row's prompt counts once."""
        import numpy

        counts = numpy.zeros(len(self), "int64")
        for name in ID_COLUMNS:
            if name in self.columns:
                counts += self.lengths(name)
        return counts


def total_tokens(rows: Sequence[Row]) -> int:
    """Tokens of all rows; a preference row's prompt counts once."""
    if not isinstance(rows, TokenRows):
        return sum(map(count_tokens, rows))
    return int(rows.token_counts().sum())


def longest_sequence(rows: Sequence[Row]) -> int:
    """Tokens of the longest sequence of any row; 0 where there are no rows."""
    import numpy

    if not isinstance(rows, TokenRows):
        return max(map(max_sequence_length, rows), default=0)
    if not len(rows):
        return 0
    if "seq_lengths" in rows.columns:
        return int(rows.columns["seq_lengths"].take(rows.positions).values.max(initial=0))
    answers = [rows.lengths(name) for name in ANSWER_COLUMNS if name in rows.columns]
    if not answers:
        return int(rows.lengths("input_ids").max())
    return int((rows.lengths("prompt_ids") + numpy.maximum.reduce(answers)).max())


def used_ids(rows: Sequence[Row]) -> Iterator[int]:
    """Every token id in the rows, at least once."""
    import numpy

    if not isinstance(rows, TokenRows):
        yield from (token for row in rows for name in ID_COLUMNS for token in row.get(name, ()))
        return
    for name in ID_COLUMNS:
        values = rows.columns[name].values if name in rows.columns else ()
        for start in range(0, len(values), CHUNK):
            yield from numpy.unique(values[start : start + CHUNK]).tolist()


def special_tokens_inside(
    blocks: TokenRows, special: Sequence[int], begins: int | None, ends: int | None
) -> Counter[int]:
    """Of blocks: how many documents hold each special token, but for the one that each `begins` with and the
    one that each `ends` with.
    """
    import numpy

    found: Counter[int] = Counter()
    if not len(blocks):
        return found
    ids, lengths = (
        blocks.columns[name].take(blocks.positions).values for name in ("input_ids", "seq_lengths")
    )
    behind = lengths.cumsum(dtype="int64")
    for start in range(0, len(ids), CHUNK):
        places = start + numpy.flatnonzero(numpy.isin(ids[start : start + CHUNK], special))
        documents, tokens = behind.searchsorted(places, side="right"), ids[places]
        is_begin = (tokens == begins) & (places == behind[documents] - lengths[documents])
        is_end = (tokens == ends) & (places == behind[documents] - 1)
        inside = ~is_begin & ~is_end
        pairs = numpy.unique(numpy.stack([documents[inside], tokens[inside]]), axis=1)
        found.update(pairs[1].tolist())
    return found


def join_token_rows(parts: Sequence[TokenRows]) -> TokenRows:
    """The rows of several parts of one sequence of rows, one behind the other."""
    import numpy

    parts = [part for part in parts if len(part)]
    if len(parts) < 2:
        return parts[0] if parts else TokenRows({}, [], None)
    columns = {
        name: join_ragged([part.columns[name].take(part.positions) for part in parts])
        for name in parts[0].columns
    }
    tables = [part.sources for part in parts if isinstance(part.sources, Rows)]
    if len(tables) == len(parts) and all(rows.table is tables[0].table for rows in tables):
        indices = numpy.concatenate([rows.indices for rows in tables])
        sources: Sequence[Row] = Rows(tables[0].table, indices)
    else:
        sources = Chained([part.sources for part in parts])
    offsets = numpy.cumsum([0, *(len(part.sources) for part in parts)])
    owners = [
        part.owners[part.positions] + offset
        for part, offset in zip(parts, offsets, strict=False)
        if part.owners is not None
    ]
    return TokenRows(columns, sources, numpy.concatenate(owners))


def describe_counts(counts: Counter[str]) -> list[str]:
    """What a user should know of `Tokenized.counts`, in sentences; nothing where every answer is trained from
    one sequence, as it stands.
    """
    lines = []
    if counts[ANSWERS_TRAINED] < counts[ANSWERS]:
        trained = f"{counts[ANSWERS_TRAINED]} of {counts[ANSWERS]}"
        lines.append(f"{trained} answers are trained: the others do not fit in data.max_length")
    if counts[SPLIT]:
        lines.append(
            f"{counts[SPLIT]} conversations are {counts[PARTS]} sequences: before a later answer the chat "
            "template writes earlier turns otherwise, or their tokens are others"
        )
    known = {TRUNCATED, ANSWERS, ANSWERS_TRAINED, SPLIT, PARTS}
    return lines + [f"{count} {what}" for what, count in sorted(counts.items()) if what not in known]


def count_tokens(row: Row) -> int:
    """Tokens of a tokenized row; a preference row's prompt counts once."""
    return sum(len(row[column]) for column in ID_COLUMNS if column in row)


def count_sequence_tokens(row: Row) -> int:
    """Tokens of all sequences of a tokenized row; a prompt counts with each of its answers."""
    answers = [len(row[column]) for column in ANSWER_COLUMNS if column in row]
    return sum(len(row["prompt_ids"]) + length for length in answers) if answers else len(row["input_ids"])


def max_sequence_length(row: Row) -> int:
    """Tokens of the longest sequence of a tokenized row."""
    if "seq_lengths" in row:
        return max(row["seq_lengths"])
    answers = [len(row[column]) for column in ANSWER_COLUMNS if column in row]
    return len(row["prompt_ids"]) + max(answers) if answers else len(row["input_ids"])
