"""CSV and TSV, of which every cell is text and an empty one null; and texts, of which each line is a row."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from typing import IO

from ..reasons import BadRow, Reason
from ..rows import RawRow
from .json_files import NOT_UTF8, as_text
from .kinds import BOM, open_bytes
from .places import DataFile, Skip, Span

DELIMITERS = {"csv": ",", "tsv": "\t"}
NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}


def read_table(file: DataFile, span: Span | None, skip: Skip) -> Iterator[RawRow]:
    """The rows below the header. Raises DataError where the header names no columns."""
    csv.field_size_limit(sys.maxsize)
    delimiter = DELIMITERS[file.kind]
    with open_bytes(file.path, file.compression) as stream:
        lines = _Lines(stream)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header = _read_header(file, reader, delimiter)
        while True:
            lines.begin()
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if lines.ended:
                    raise file.error(
                        f"cannot be read: the quotes that open at line {lines.first} are never closed."
                    ) from error
                if not skip.one():
                    yield lines.bad_row(file, f"is no {file.kind.upper()} ({error})")
                continue
            if not cells or skip.one():
                continue
            yield _as_row(file, header, cells, lines)


class _Lines:
    """The lines of a table; of the row that is being read, where it began and whether it is text."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.number, self.ended = stream, 0, False
        self.begin()

    def begin(self) -> None:
        """A new row begins with the next line."""
        self.first, self.raw, self.is_text = self.number + 1, b"", True

    def __iter__(self) -> Iterator[str]:
        for line in self.stream:
            self.number += 1
            raw = line.removeprefix(BOM) if self.number == 1 else line
            self.raw = self.raw or raw
            try:
                yield raw.decode()
            except UnicodeDecodeError:
                self.is_text = False
                yield raw.decode(errors="replace")
        self.ended = True

    def bad_row(self, file: DataFile, problem: str) -> RawRow:
        return RawRow(as_text(self.raw), file.name, self.first, BadRow(Reason.unreadable, problem))


def _as_row(file: DataFile, header: list[str], cells: list[str], lines: _Lines) -> RawRow:
    if not lines.is_text:
        return lines.bad_row(file, NOT_UTF8)
    if len(cells) > len(header) and not any(cells[len(header) :]):
        cells = cells[: len(header)]  # delimiters at the end of a line
    if len(cells) != len(header):
        return lines.bad_row(file, f"has {len(cells)} cells where the header has {len(header)}")
    return RawRow(
        {name: cell or None for name, cell in zip(header, cells, strict=True)}, file.name, lines.first
    )


def _read_header(file: DataFile, reader: Iterator[list[str]], delimiter: str) -> list[str]:
    """The names of the columns, told apart. Raises DataError."""
    try:
        cells = next(reader, [])
    except csv.Error as error:
        raise file.error(f"cannot be read: its header is no {file.kind.upper()} ({error}).") from error
    names = [cell.strip() or f"Unnamed: {number}" for number, cell in enumerate(cells)]  # an index of pandas
    if len(names) == 1:
        for other, word in NAMES.items():
            if other in names[0]:
                raise file.error(
                    f"has one column, {names[0]!r}: its cells are separated by {word}, and those of a "
                    f".{file.kind} by {NAMES[delimiter]}; save it so, or as JSONL."
                )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise file.error(f"has the column {twice[0]!r} twice in its header; rename one of them.")
    return names


def read_text(file: DataFile, span: Span | None, skip: Skip) -> Iterator[RawRow]:
    """A row with a `text` for each line that is not blank."""
    with open_bytes(file.path, file.compression) as stream:
        for number, line in enumerate(stream, start=1):
            if line.isspace() or skip.one():
                continue
            raw = line.removeprefix(BOM) if number == 1 else line
            try:
                yield RawRow({"text": raw.decode().rstrip("\r\n")}, file.name, number)
            except UnicodeDecodeError:
                yield RawRow(as_text(raw), file.name, number, BadRow(Reason.unreadable, NOT_UTF8))
