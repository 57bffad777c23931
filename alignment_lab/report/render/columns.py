"""Tables for a terminal of any width: as many as the columns need, and never a column too narrow to read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

T = TypeVar("T")  # a row


@dataclass(frozen=True)
class Column(Generic[T]):
    """One column: its heading, and its text and style in a row."""

    heading: str
    text: Callable[[T], str]
    justify: Literal["left", "right"] = "right"
    style: Callable[[T], str] = lambda row: ""

    def width(self, rows: Sequence[T]) -> int:
        """Characters of the widest line, with the gap to the next column."""
        lines = [line for text in (self.heading, *map(self.text, rows)) for line in text.splitlines()]
        return 3 + max(Text(line).cell_len for line in lines)


def fit_tables(
    rows: Sequence[T], row_heads: Sequence[Column[T]], columns: Sequence[Column[T]], width: int
) -> list[Table]:
    """Tables that fit into `width` characters; each begins with `row_heads`.

    An interval goes below its value where the columns do not fit into one table otherwise.
    """
    available = width - sum(column.width(rows) for column in row_heads)
    if sum(column.width(rows) for column in columns) > available:
        columns = [_stack_interval(column) for column in columns]
    return [_table(rows, [*row_heads, *group]) for group in _groups(columns, rows, available)]


def _stack_interval(column: Column[T]) -> Column[T]:
    return replace(column, text=lambda row: column.text(row).replace(" [", "\n["))


def _groups(columns: Sequence[Column[T]], rows: Sequence[T], available: int) -> Iterator[list[Column[T]]]:
    """The columns in groups that fit into `available` characters; a wider column is a group of its own."""
    group: list[Column[T]] = []
    for column in columns:
        if group and sum(member.width(rows) for member in [*group, column]) > available:
            yield group
            group = []
        group.append(column)
    yield group


def _table(rows: Sequence[T], columns: Sequence[Column[T]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for column in columns:
        table.add_column(Text(column.heading), justify=column.justify, overflow="fold", vertical="top")
    for row in rows:
        table.add_row(*(Text(column.text(row), column.style(row)) for column in columns))
    return table
