"""Converted rows where they lie, with a few numbers of each: few in memory, many in an Arrow file.

A table is never changed. What is trained on, held out or taken is a `Rows`: a table and the indices of its
rows, in an order of their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from ..runtime.files import json_digest
from .rows import Row

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray

ROW = "row"  # the Arrow column of the rows themselves, as JSON
# One number of each row: the file and the line that it came from; -1 or its label; the first 64 bits of
# hashes: of the prompt as it stands, of the prompt and the whole that rows are compared by, and of what they
# are sorted by.
NUMBERS = {
    "file": "int32", "line": "int64", "label": "int8",
    "exact": "uint64", "prompt": "uint64", "whole": "uint64", "rank": "uint64", "order": "uint64",
}  # fmt: skip
LISTS = ("prompts", "turns")  # several numbers of each row, uint64: see `overlap.RowKeys`


class Ragged(NamedTuple):
    """Several numbers of each of R rows: those of row i are values[ends[i - 1]:ends[i]]."""

    values: Array  # [N]
    ends: Array  # [R]

    def take(self, indices: Array) -> Ragged:
        """The numbers of these rows, in their order."""
        import numpy

        starts, lengths = self.starts[indices], self.lengths[indices]
        ends = lengths.cumsum(dtype="int64")
        total = int(ends[-1]) if len(ends) else 0
        places = numpy.arange(total) + numpy.repeat(starts - (ends - lengths), lengths)
        return Ragged(self.values[places], ends)

    @property
    def starts(self) -> Array:
        """Where each row's numbers begin."""
        return self.ends - self.lengths

    @property
    def lengths(self) -> Array:
        """How many numbers each row has."""
        import numpy

        return numpy.diff(self.ends, prepend=0)

    @property
    def owners(self) -> Array:
        """The row of each number, [N]."""
        import numpy

        return numpy.repeat(numpy.arange(len(self.ends)), self.lengths)


class Table(NamedTuple):
    """Rows with their numbers, in the order in which they were read."""

    rows: Sequence[Row]
    numbers: Mapping[str, Array]  # by the names of NUMBERS
    lists: Mapping[str, Ragged]  # by those of LISTS
    files: Sequence[str]  # what the numbers of `file` stand for
    key: str = ""  # the digest of its file, where it lies in one


def join_ragged(parts: Sequence[Ragged]) -> Ragged:
    """The numbers of the rows of several parts, one behind the other."""
    import numpy

    offsets = numpy.cumsum([0, *(len(part.values) for part in parts)])
    ends = [part.ends + offset for part, offset in zip(parts, offsets, strict=False)]
    return Ragged(numpy.concatenate([part.values for part in parts]), numpy.concatenate(ends))


def join_tables(tables: Sequence[Table]) -> Table:
    """The rows of several tables, one behind the other, with one more number: which table a row is of."""
    import numpy

    owners = numpy.repeat(numpy.arange(len(tables)), [len(table.rows) for table in tables])
    if len(tables) == 1:
        return tables[0]._replace(numbers={**tables[0].numbers, "table": owners})
    files = list(dict.fromkeys(file for table in tables for file in table.files))
    numbers = {name: numpy.concatenate([table.numbers[name] for table in tables]) for name in NUMBERS}
    places = [numpy.array([files.index(file) for file in table.files], "int32") for table in tables]
    numbers["file"] = numpy.concatenate(
        [place[table.numbers["file"]] for place, table in zip(places, tables, strict=True)]
    )
    numbers["table"] = owners
    lists = {name: join_ragged([table.lists[name] for table in tables]) for name in LISTS}
    keys = [table.key for table in tables]
    key = json_digest(keys) if all(keys) else ""
    return Table(Chained([table.rows for table in tables]), numbers, lists, files, key)


class RowSequence(Sequence[Any]):
    """Rows that are made when they are taken: equal where their rows are."""

    def __eq__(self, other: object) -> bool:
        """Whether the other sequence has equal rows in the same order."""
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))


class Rows(RowSequence):
    """Rows of a table in an order of their own. A row is decoded when it is taken, and kept by nobody here.

    Cheap: `len`, a slice (again `Rows`), `select` and `numbers`, which gives one number of every row as an
    array without decoding any. Taking a row, or going through all of them, decodes JSON: some microseconds a
    row, in constant memory as long as the rows are not collected.
    """

    def __init__(self, table: Table, indices: Array) -> None:
        self.table, self.indices = table, indices

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> Row | Rows:
        if isinstance(index, slice):
            return Rows(self.table, self.indices[index])
        return self.table.rows[int(self.indices[index])]

    def __add__(self, other: Sequence[Row]) -> list[Row]:
        """The rows of both, decoded: for few rows."""
        return [*self, *other]

    def select(self, positions: Array) -> Rows:
        """The rows at these positions, in their order."""
        return Rows(self.table, self.indices[positions])

    def numbers(self, name: str) -> Array:
        """One of NUMBERS of every row, or `table`: see `join_tables`."""
        return self.table.numbers[name][self.indices]

    def lists(self, name: str) -> Ragged:
        """One of LISTS of every row."""
        return self.table.lists[name].take(self.indices)

    def place(self, position: int) -> tuple[str, int]:
        """(file, line) that a row was read from."""
        index = int(self.indices[position])
        return self.table.files[self.table.numbers["file"][index]], int(self.table.numbers["line"][index])


class Chained(Sequence[Any]):
    """Several sequences, one behind the other."""

    def __init__(self, parts: Sequence[Sequence[Any]]) -> None:
        import numpy

        self.parts, self.ends = parts, numpy.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, index: int) -> Any:  # type: ignore[override]
        part = int(self.ends.searchsorted(index, side="right"))
        return self.parts[part][index - (int(self.ends[part - 1]) if part else 0)]

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(self.parts)


class Mapped(RowSequence):
    """What `function(place, row)` makes of the rows at `places`, or of all, whenever one is taken."""

    def __init__(
        self, rows: Sequence[Row], function: Callable[[int, Row], Any], places: Sequence[int] | None = None
    ) -> None:
        self.rows, self.function = rows, function
        self.places = range(len(rows)) if places is None else places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Mapped: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Mapped(self.rows, self.function, self.places[index])
        place = self.places[index]
        return self.function(place, self.rows[place])

    @property
    def converted(self) -> Rows | None:
        """The rows as they were converted, where these have numbers."""
        import numpy

        rows = getattr(self.rows, "converted", None)
        return None if rows is None else rows.select(numpy.array(self.places, int))


def with_columns(rows: Sequence[Row], columns: Mapping[str, Sequence[Any]]) -> Sequence[Row]:
    """The rows with further columns of one value each; where it is None, a row goes without."""

    def complete(place: int, row: Row) -> Row:
        values = ((name, column[place]) for name, column in columns.items())
        return {**row, **{name: value for name, value in values if value is not None}}

    return Mapped(rows, complete) if columns else rows


class ArrowRows(Sequence[Row]):
    """The rows of a mapped Arrow file: pages of it that are not in use take no memory.

    In another process it is opened again by its path.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        batch = int(self._ends.searchsorted(index, side="right"))
        start = int(self._ends[batch - 1]) if batch else 0
        return json.loads(self._chunks[batch][index - start].as_buffer().to_pybytes())

    @cached_property
    def batches(self) -> list[Any]:
        """The record batches of the file."""
        import pyarrow

        reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(self.path)))
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]

    @cached_property
    def _chunks(self) -> list[Any]:
        return [batch.column(ROW) for batch in self.batches]

    @cached_property
    def _ends(self) -> Array:
        import numpy

        return numpy.cumsum([batch.num_rows for batch in self.batches], dtype="int64")


def open_table(path: Path, files: Sequence[str]) -> Table:
    """The table in an Arrow file that `encode_batch`es were written to. Raises OSError, or pyarrow's
    ArrowInvalid where it is none.
    """
    import numpy

    rows = ArrowRows(path)
    empty: dict[str, Any] = {name: [numpy.zeros(0, kind)] for name, kind in NUMBERS.items()}
    numbers = {
        name: numpy.concatenate(empty[name] + [batch.column(name).to_numpy() for batch in rows.batches])
        for name in NUMBERS
    }
    lists = {}
    for name in LISTS:
        columns = [batch.column(name) for batch in rows.batches]
        values = [numpy.zeros(0, "uint64"), *(column.flatten().to_numpy() for column in columns)]
        lengths = [numpy.zeros(0, "int64"), *(column.value_lengths().to_numpy() for column in columns)]
        ends = numpy.concatenate(lengths).cumsum(dtype="int64")
        lists[name] = Ragged(numpy.concatenate(values), ends)
    return Table(rows, numbers, lists, files)


def encode_batch(table: Table) -> Any:
    """A table in memory as a record batch for a file."""
    import numpy
    import pyarrow

    columns = {ROW: pyarrow.array(list(map(_encode, table.rows)), pyarrow.large_binary())}
    columns |= {name: pyarrow.array(values) for name, values in table.numbers.items()}
    for name, ragged in table.lists.items():
        offsets = numpy.concatenate([[0], ragged.ends]).astype("int64")
        columns[name] = pyarrow.LargeListArray.from_arrays(offsets, pyarrow.array(ragged.values))
    return pyarrow.record_batch(columns)


def with_files(batch: Any, places: Sequence[int]) -> Any:
    """A record batch with other numbers of its files: places[i] for i."""
    import numpy
    import pyarrow

    files = numpy.array(places, "int32")[batch.column("file").to_numpy()] if batch.num_rows else []
    column = pyarrow.array(files, pyarrow.int32())
    return batch.set_column(batch.schema.get_field_index("file"), batch.schema.field("file"), column)


def _encode(row: Row) -> bytes:
    """JSON in UTF-8; of a row with half a character, in ASCII."""
    try:
        return json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(row).encode()
