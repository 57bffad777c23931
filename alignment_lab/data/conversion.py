"""A stretch of a source's rows as they were read: renamed, filtered, converted, or left out with a reason."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..config import Format, Source
from .formats import Converter, choose_converter, not_a_row, unused_parts, wrapping_column
from .mixture import passes, rename
from .overlap import RowKeys, preferred_messages, row_keys
from .quarantine import BadRecord, bad_record
from .reasons import BadRow, DataError
from .rows import RawRow, Row
from .table import LISTS, NUMBERS, Ragged, Table

if TYPE_CHECKING:
    from .table import Array

_sorted = json.JSONEncoder(sort_keys=True).encode
_sorted_or_text = json.JSONEncoder(sort_keys=True, default=str).encode
NO_LABEL = -1


@dataclass
class Stretch:
    """What became of some rows, in their order."""

    rows: list[Row] = field(default_factory=list)
    numbers: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in NUMBERS})
    lists: dict[str, list[list[int]]] = field(default_factory=lambda: {name: [] for name in LISTS})
    files: dict[str, int] = field(default_factory=dict)  # number of each file in the column `file`
    bad: list[BadRecord] = field(default_factory=list)
    read: int = 0
    filtered: int = 0
    columns: set[str] = field(default_factory=set)  # that any row has a value in, once they are renamed
    raw_columns: set[str] = field(
        default_factory=set
    )  # of a source that renames or filters, as they were read
    unused: set[str] = field(default_factory=set)
    digests: list[bytes] = field(default_factory=list)  # 16 bytes of each row as it was read

    def table(self) -> Table:
        """The rows and their numbers."""
        import numpy

        numbers: dict[str, Array] = {
            name: numpy.array(self.numbers[name], kind) for name, kind in NUMBERS.items()
        }
        lists = {}
        for name, values in self.lists.items():
            flat = [number for each in values for number in each]
            ends = numpy.cumsum([len(each) for each in values], dtype="int64")
            lists[name] = Ragged(numpy.array(flat, "uint64"), ends)
        return Table(self.rows, numbers, lists, list(self.files))

    def without_rows(self) -> Stretch:
        """What is left to be told once the rows and their numbers are stored."""
        return replace(self, rows=[], numbers={}, lists={})


@dataclass(frozen=True)
class Conversion:
    """How the rows of one part of a source become rows of a format."""

    source: Source
    format: Format
    label: str  # the setting that names the rows, for sentences
    rejected: str = "worst"  # which answer is set against the best of several; if random, by the seed
    seed: int = 0

    def columns(self, raw_rows: Iterable[RawRow]) -> set[str]:
        """The columns that any of the rows has a value in."""
        found: set[str] = set()
        for raw in raw_rows:
            row = self.prepare(raw)
            if isinstance(row, Mapping):
                found |= _filled(row)
        return found

    def prepare(self, raw: RawRow) -> Row | BadRow | None:
        """The row under the lab's columns; None where the filter leaves it out."""
        if raw.defect:
            return raw.defect
        if not isinstance(raw.value, dict):
            return not_a_row(raw.value)
        if not passes(raw.value, self.source.filter):
            return None
        return rename(raw.value, self.source.columns)

    def convert(self, raw_rows: Iterable[RawRow], columns: set[str]) -> Stretch:
        """Convert rows of a source that has these columns. Raises DataError where no converter fits them."""
        convert: Converter | None = None  # not chosen where no row could be read: that is what is to be told
        found = Stretch()
        for raw in raw_rows:
            found.read += 1
            found.digests.append(_raw_digest(raw.value))
            if self.source.columns or self.source.filter:
                found.raw_columns |= raw.value.keys() if isinstance(raw.value, dict) else set()
            row = self.prepare(raw)
            if row is None:
                found.filtered += 1
            elif isinstance(row, BadRow):
                found.bad.append(bad_record(raw, row))
            else:
                found.columns |= _filled(row)
                convert = convert or self._choose(columns, row)
                self._add(found, raw, row, convert)
        return found

    def _choose(self, columns: set[str], row: Row) -> Converter:
        try:
            return choose_converter(self.format, columns, self.label, rejected=self.rejected, seed=self.seed)
        except DataError:
            if column := wrapping_column(row, self.format):
                raise DataError(
                    f"{self.label}: has its rows wrapped in `{column}`, which is a list of them; "
                    "save that list by itself."
                ) from None
            raise

    def _add(self, found: Stretch, raw: RawRow, row: Row, convert: Converter) -> None:
        try:
            converted = convert(row)
        except BadRow as bad:
            found.bad.append(bad_record(raw, bad))
            return
        found.unused |= unused_parts(row, self.format)
        file = found.files.setdefault(raw.file, len(found.files))
        keys = None
        for one in converted:
            # both halves of a pair answer one prompt: what is compared is the good answer's
            keys = keys._replace(prompts=[], turns=[]) if keys else row_keys(one)
            _append(found, one, keys, file, raw.line)


def _append(found: Stretch, row: Row, keys: RowKeys, file: int, line: int) -> None:
    numbers = found.numbers
    content = row["text"] if "text" in row else preferred_messages(row)
    numbers["file"].append(file)
    numbers["line"].append(line)
    numbers["label"].append(int(row["label"]) if "label" in row else NO_LABEL)
    numbers["exact"].append(_hash(_sorted(row["prompt"])) if "label" in row else 0)
    numbers["prompt"].append(keys.prompt)
    numbers["whole"].append(keys.whole)
    numbers["rank"].append(keys.rank)
    numbers["order"].append(_hash(_sorted(content)))
    for name in LISTS:
        found.lists[name].append(getattr(keys, name))
    found.rows.append(row)


def _filled(row: Mapping[str, Any]) -> set[str]:
    return {column for column, value in row.items() if value is not None}


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _raw_digest(value: Any) -> bytes:
    text = value if isinstance(value, str) else _sorted_or_text(value)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
