"""Rows that cannot be used: counted by reason, shown by file and line, and too many of them refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..config import BadRows, Data
from .reasons import BadRow, DataError, Reason
from .rows import RawRow, Row
from .table import Rows

EXAMPLES = 3  # that a sentence shows
EXCERPT = 160  # characters of a row that are kept beside its place


class BadRecord(NamedTuple):
    """A row that was left out: where it stands, why, and how it begins."""

    file: str
    line: int
    unit: str  # what `line` counts: lines, or rows
    reason: Reason
    detail: str
    excerpt: str

    def describe(self) -> str:
        """`rows.jsonl, line 3: \\`chosen\\` is missing`."""
        return f"{self.file}, {self.unit} {self.line}: {self.detail or self.reason.value}"


def is_defect(reason: Reason) -> bool:
    """Whether a row is left out as it is wrong: not where it has nothing to learn from, or is too long."""
    return not reason.uninformative and reason is not Reason.prompt_too_long


def dropped_record(rows: Sequence[Row], index: int, bad: BadRow) -> BadRecord:
    """The record of a converted row that cannot be tokenized."""
    file, line = rows.place(index) if isinstance(rows, Rows) else ("", index + 1)
    return BadRecord(file, line, "line", bad.reason, str(bad), json.dumps(rows[index])[:EXCERPT])


def bad_record(raw: RawRow, bad: BadRow) -> BadRecord:
    """The record of a row as it was read."""
    value = raw.value if isinstance(raw.value, str) else json.dumps(raw.value, default=str)
    return BadRecord(raw.file, raw.line, raw.unit, bad.reason, str(bad), value[:EXCERPT])


@dataclass
class Quarantine:
    """The bad rows of one part of a source. Of many the records lie in a file."""

    source: str = ""  # the name of the source
    records: list[BadRecord] = field(default_factory=list)
    counts: Counter[tuple[Reason, str]] = field(default_factory=Counter)  # rows by reason and detail
    file: Path | None = None

    def add(self, record: BadRecord) -> None:
        """Count a record."""
        self.counts[record.reason, record.detail] += 1

    def put(self, record: BadRecord) -> None:
        """Count a record, and keep it."""
        self.records.append(record)
        self.add(record)

    def __iter__(self) -> Iterator[BadRecord]:
        yield from self.records
        if self.file:
            with self.file.open(encoding="utf-8") as lines:
                yield from map(decode_record, lines)

    def defects(self) -> int:
        """The bad rows, without those that are well formed and have nothing to learn from."""
        return sum(count for (reason, _), count in self.counts.items() if is_defect(reason))

    def details(self) -> Counter[str]:
        """Rows by what is wrong with them, in words."""
        found: Counter[str] = Counter()
        for (reason, detail), count in self.counts.items():
            found[detail or reason.value] += count
        return found

    def check(self, data: Data, label: str, read: int) -> None:
        """Raise DataError where more rows are defective than `data` allows; it shows three, of different
        kinds where there are some. `label`: the setting that named them; `read`: all rows.
        """
        defects = self.defects()
        if data.bad_rows is BadRows.drop or defects <= data.max_bad_fraction * read:
            return
        first: dict[str, BadRecord] = {}
        rest: list[BadRecord] = []
        for record in self:
            if not is_defect(record.reason):
                continue
            if record.detail not in first:
                first[record.detail] = record
            elif len(rest) < EXAMPLES:
                rest.append(record)
            if len(first) == EXAMPLES:
                break
        shown = [*first.values(), *rest][:EXAMPLES]
        examples = "; ".join(
            record.describe() for record in sorted(shown, key=lambda record: (record.file, record.line))
        )
        some_are_good = "" if defects == read else ", or leave them out with data.bad_rows=drop"
        raise DataError(
            f"{label}: {defects} of {read} rows cannot be used ({examples}), more than "
            f"data.max_bad_fraction={data.max_bad_fraction:g} of them; fix them{some_are_good}."
        )

    def to_plain(self, data: Data) -> Iterator[dict[str, Any]]:
        """The lines of quarantine.jsonl."""
        for record in self:
            yield {
                "source": source_label(data, self.source, record.file),
                "file": record.file, record.unit: record.line,
                "reason": record.reason.name, "detail": record.detail, "row": record.excerpt,
            }  # fmt: skip


def source_label(data: Data, name: str, file: str = "") -> str:
    """What a user calls a source: its name in data.sources, else the file, folder or data set that is set.

    `file`: one of its files, which tells whether it is the one to train on or that of held-out rows.
    """
    if data.sources:
        return name
    if data.eval_path and file:
        heldout = Path(data.eval_path).expanduser()
        if file == data.eval_path or heldout in Path(file).parents:
            return data.eval_path
    return data.path or name


def bad_rows(data: Data, parts: Iterable[Quarantine]) -> Iterator[dict[str, Any]]:
    """The lines of quarantine.jsonl: every bad row of every source."""
    return (line for part in parts for line in part.to_plain(data))


def describe_quarantine(data: Data, parts: Iterable[Quarantine]) -> str:
    """`3 rows of ours and 1 of theirs, with file, line and reason`."""
    counts: Counter[str] = Counter()
    for part in parts:
        if data.eval_path:  # one source, of two names
            counts.update(source_label(data, part.source, record.file) for record in part)
        else:
            counts[source_label(data, part.source)] += part.counts.total()
    (first, number), *others = counts.items()
    more = "".join(f", {count} of {name}" for name, count in others)
    return f"{number} {'rows' if number > 1 else 'row'} of {first}{more}, with file, line and reason"


def count_reasons(parts: Iterable[Quarantine]) -> dict[str, int]:
    """Bad rows by the names of their reasons."""
    counts: Counter[str] = Counter()
    for part in parts:
        for (reason, _), count in part.counts.items():
            counts[reason.name] += count
    return dict(sorted(counts.items()))


def encode_record(record: BadRecord) -> str:
    """A record as a line of JSON."""
    return json.dumps([*record[:3], record.reason.name, *record[4:]]) + "\n"


def decode_record(line: str) -> BadRecord:
    """The record in a line that `encode_record` wrote."""
    file, number, unit, reason, detail, excerpt = json.loads(line)
    return BadRecord(file, number, unit, Reason[reason], detail, excerpt)
