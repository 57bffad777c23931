"""Tokenized rows as arrays: lists of integers are made when a row is taken, and kept by nobody here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, overload

from .rows import Row
from .table import Chained, Ragged, Rows, RowSequence, join_ragged
from .tokenized import ANSWER_COLUMNS, ID_COLUMNS, count_tokens, max_sequence_length

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray

CHUNK = 2**22  # ids that are looked at at a time


class TokenRows(RowSequence):
    """Rows with columns of token ids, int32 arrays that may be mapped from a file.

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

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))

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
