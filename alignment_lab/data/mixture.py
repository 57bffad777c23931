"""Which rows of a mixture's sources are taken, how often, and what became of the others.

Pure functions on the rows of one source. What is chosen from a source follows from the seed, the source's
name and the rows' content alone: it is the same in every process, in any order of rows, and whatever other
sources there are.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..config import Data, Source
from .reasons import DataError
from .rows import Row

if TYPE_CHECKING:
    import numpy
    from rich.table import Table

    Array = numpy.ndarray

_ABSENT = object()


def rename(row: Row, columns: Mapping[str, str | None]) -> Row:
    """The row under the lab's columns, by `Source.columns`: {lab's column: file's column}.

    `a.b` is the part b of column a, where no column has that name. A file's column that is mapped is read
    under the new name alone; null hides the lab's column.
    """
    if not columns:
        return row
    moved = {name for name in columns.values() if name is not None}
    renamed = {name: value for name, value in row.items() if name not in moved and name not in columns}
    for name, theirs in columns.items():
        value = _ABSENT if theirs is None else _value(row, theirs)
        if value is not _ABSENT:
            renamed[name] = value
    return renamed


def passes(row: Row, conditions: Mapping[str, Any]) -> bool:
    """Whether all conditions of `Source.filter` hold of a row as it was read. A missing column is null."""
    for column, condition in conditions.items():
        value = _value(row, column)
        if not _holds(None if value is _ABSENT else value, condition):
            return False
    return True


def require_columns(data: Data, name: str, columns: set[str]) -> None:
    """Raise DataError where the source maps or filters by a column that none of its rows has.

    `columns`: of all its rows, as they were read.
    """
    source = data.mixture()[name]
    named = [(f"columns.{ours}", theirs) for ours, theirs in source.columns.items() if theirs is not None]
    named += [(f"filter.{column}", column) for column in source.filter]
    for setting, column in named:
        if column not in columns and column.partition(".")[0] not in columns:
            there = ", ".join(sorted(columns)) or "none"
            key = data.key(name, setting)
            raise DataError(f"{key}: no row has the column {column}; there are: {there}.")


def require_passed(data: Data, name: str, read: int, filtered: int) -> None:
    """Raise DataError where a source's filter leaves none of the rows that were read."""
    if filtered and filtered == read:
        key = data.key(name, "filter")
        raise DataError(f"{key}: none of the {read} rows passes it; correct it, or remove it with ~{key}.")


def row_counts(data: Data, usable: Mapping[str, int]) -> dict[str, int]:
    """How many rows of each source an epoch sees, repeats included.

    `usable`: distinct rows that can be trained on. By `weight`, the mixture is as large as it can be with no
    row seen more often than its source's `repeat`, or has `data.rows` rows. Raises DataError where a source
    has too few rows for what is asked.
    """
    sources = {name: source for name, source in data.mixture().items() if source.has_train}
    if all(source.weight is not None for source in sources.values()):
        return _weighted_counts(data, sources, usable)
    return {name: _own_count(data, name, source, usable[name]) for name, source in sources.items()}


def choose_rows(keys: Array, count: int, *, seed: int, name: str) -> Array:
    """Indices of `count` of a source's rows, each as often as the others or once more.

    `keys`: a number of each row's content, uint64; rows of equal content are taken in their order. A smaller
    choice is part of a larger one. int64, ascending within each round.
    """
    import numpy

    total = len(keys)
    if not total or count <= 0:
        return numpy.empty(0, numpy.int64)
    rounds, rest = divmod(count, total)
    everything = numpy.arange(total, dtype=numpy.int64)
    chosen = [everything] * rounds
    if rest:
        order = numpy.argsort(_mix(keys, seed, name), kind="stable")[:rest]
        chosen.append(numpy.sort(order).astype(numpy.int64))
    return numpy.concatenate(chosen)


def _mix(keys: Array, seed: int, name: str) -> Array:
    """Hashes that order rows at random, by SplitMix64's finalizer (Steele, Lea and Flood, 2014)."""
    import numpy

    salt = hashlib.sha256(f"{seed} {name}".encode()).digest()[:8]
    mixed = keys.astype(numpy.uint64) ^ numpy.uint64(int.from_bytes(salt, "big"))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> numpy.uint64(shift))) * numpy.uint64(factor)
    return mixed ^ (mixed >> numpy.uint64(31))


def _own_count(data: Data, name: str, source: Source, usable: int) -> int:
    if source.count is not None and source.count > usable:
        raise DataError(
            f"{data.key(name, 'count')}={source.count}: it has {usable} rows that can be used; ask for no "
            f"more, and see them more often with {data.key(name, 'repeat')}."
        )
    share = 1.0 if source.fraction is None else source.fraction
    taken = source.count if source.count is not None else max(int(share * usable + 0.5), min(usable, 1))
    return taken * source.repeat


def _weighted_counts(data: Data, sources: Mapping[str, Source], usable: Mapping[str, int]) -> dict[str, int]:
    total = sum(source.weight or 0.0 for source in sources.values())
    shares = {name: (source.weight or 0.0) / total for name, source in sources.items()}
    most = {name: usable[name] * source.repeat for name, source in sources.items()}
    scarce = min(sources, key=lambda name: most[name] / shares[name])
    limit = int(most[scarce] / shares[scarce] + 1e-6)
    size = limit if data.rows is None else data.rows
    if size > limit:
        raise DataError(
            f"data.rows={size}: {scarce} has {usable[scarce]} rows that can be used, enough for a mixture of "
            f"{limit}; lower it, or raise {data.key(scarce, 'repeat')}."
        )
    return {name: min(round(size * share), most[name]) for name, share in shares.items()}


def _value(row: Row, column: str) -> Any:
    """A column's value, or that of a part of it; _ABSENT where there is none."""
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _ABSENT
        value = value[part]
    return value


def _holds(value: Any, condition: Any) -> bool:
    if isinstance(condition, Mapping):
        low, high = condition.get("min"), condition.get("max")
        if low is not None or high is not None:
            if isinstance(value, bool) or not isinstance(value, int | float):
                return False
            if (low is not None and not value >= low) or (high is not None and not value <= high):
                return False
        return "not" not in condition or not _holds(value, condition["not"])
    if isinstance(condition, list | tuple):
        return any(_equal(value, one) for one in condition)
    return _equal(value, condition)


def _equal(value: Any, wanted: Any) -> bool:
    """Equality, where true is not 1."""
    return bool(value == wanted) and isinstance(value, bool) == isinstance(wanted, bool)


@dataclass
class SourceCounts:
    """What became of one source's rows, counted as they were read: a pair is one, and has two answers."""

    name: str
    read: int = 0  # training rows, and held-out ones where the source names them
    filtered: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> rows
    kept: int = 0  # that can be trained on
    chosen: int = 0  # that an epoch sees, repeats included
    heldout: int = 0
    tokenized: int = 0  # rows that this run can take: the chosen ones, or as many as its steps need
    refused: int = 0  # by the template or the length, of the chosen ones that were tokenized
    tokens: int = 0  # of these
    answers: int = 0
    answers_trained: int = 0
    truncated: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For report.json, by name. What only tokenized rows tell is there once it was counted."""
        return {
            key: dict(value) if isinstance(value, Counter) else value
            for key, value in vars(self).items()
            if key != "name" and (self.tokens or key not in TOKENIZED)
        }


TOKENIZED = ("tokenized", "refused", "tokens", "answers", "answers_trained", "truncated")
COLUMNS = {  # of the table -> what it shows
    "read": "read", "filtered": "filtered", "left out": "dropped", "kept": "kept", "to train on": "chosen",
    "held out": "heldout", "refused": "refused", "in this run": "tokenized", "tokens": "tokens",
    "answers": "answers",
    "answers trained": "answers_trained", "cut": "truncated",
}  # fmt: skip
USUAL = {"in this run": "to train on", "answers trained": "answers"}  # columns that need no showing if equal


def source_table(counts: Sequence[SourceCounts]) -> Table | None:
    """The mixture as a table for the terminal; None for one source."""
    if len(counts) < 2:
        return None
    from rich.table import Table

    headings, rows = source_cells(counts)
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading == headings[0] else "right")
    for row in rows:
        table.add_row(*row)
    return table


def describe_unit(counts: Sequence[SourceCounts]) -> str:
    """What the table counts, where it is not plain."""
    answers = sum(one.answers for one in counts)
    if answers in (0, sum(one.tokenized for one in counts)):
        return ""
    return "Rows are counted as they were read: a pair is one row, and has two answers."


def source_cells(counts: Sequence[SourceCounts]) -> tuple[list[str], list[list[str]]]:
    """The headings and rows of a table of sources, with a total where there are several.

    A column that is 0 everywhere is left out, and one that only repeats another (see USUAL).
    """
    found = [[_number(one, attribute) for attribute in COLUMNS.values()] for one in counts]
    totals = [sum(column) for column in zip(*found, strict=True)]
    names = list(COLUMNS)
    columns = dict(zip(names, zip(*found, strict=True), strict=True))
    shown = [
        index
        for index, (name, numbers) in enumerate(columns.items())
        if any(numbers) and numbers != columns.get(USUAL.get(name, ""))
    ]
    several = len(counts) > 1
    headings = ["source", *(names[index] for index in shown)]
    lines = list(zip([one.name for one in counts], found, strict=True))
    rows = [
        [name, *(f"{numbers[index]:,}" for index in shown)]
        for name, numbers in [*lines, *([("total", totals)] if several else [])]
    ]
    if totals[4] and several:
        headings.append("share")
        for row, numbers in zip(rows, [*found, totals], strict=True):
            row.append(f"{numbers[4] / totals[4]:.1%}")
    return headings, rows


def describe_dropped(counts: Sequence[SourceCounts]) -> list[str]:
    """A line for each source with rows that were left out, the most frequent reason first."""
    return [
        f"{one.name}: {'; '.join(f'{rows:,} {reason}' for reason, rows in one.dropped.most_common())}"
        for one in counts
        if one.dropped.total()
    ]


def describe_unused(unused: Mapping[str, set[str]]) -> list[str]:
    """A sentence for each source with columns, or keys of messages, that nothing takes."""
    return [f"{name}: not used: {', '.join(sorted(parts))}" for name, parts in unused.items() if parts]


def describe_filtered(data: Data, counts: Iterable[SourceCounts]) -> list[str]:
    """A line for each source with rows that its filter leaves out."""
    return [
        f"{data.key(one.name, 'filter')}: {one.filtered:,} of {one.read:,} rows do not pass it"
        for one in counts
        if one.filtered
    ]


def _number(counts: SourceCounts, attribute: str) -> int:
    value = getattr(counts, attribute)
    return value.total() if isinstance(value, Counter) else int(value)
