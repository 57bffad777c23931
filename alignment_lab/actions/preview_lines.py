"""Why a row that is asked for by its line is not among those that are shown."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import partial
from itertools import islice

from .. import data
from ..config import Experiment, Source
from ..data.mixture import passes
from ..data.readers import Part, open_rows
from ..data.readers.places import listed
from ..data.rows import RawRow
from ..data.split import HELD_OUT
from ..data.table import Rows
from .row_counts import RowCounts

MOST = 5  # rows, or files, that a sentence tells of
READ: tuple[tuple[Part, str], ...] = (("train", "train"), ("eval", "heldout"))  # keys of Splits.read
Places = Iterator[tuple[str, str]]  # file:line of a row, and what became of it


def describe_missing(
    spec: Experiment, splits: data.Splits, counts: RowCounts, shown: Collection[str]
) -> list[str]:
    """What became of the rows on the lines that are asked for, but for those that are shown (`file:line`).

    A clause for each reason: `a.jsonl:3, a.jsonl:9: held out (...)`.
    """
    lines = spec.preview.lines or []
    if not lines:
        return []
    places: dict[str, str] = {}  # the first that is found is said
    for line in lines:
        for place, reason in (*_left_out(spec, splits, line), *_converted(spec, splits, counts, line)):
            places.setdefault(place, reason)
    known = {int(place.rpartition(":")[2]) for place in (*shown, *places)}
    unknown = [line for line in lines if line not in known]
    if unknown or any(source.filter for source in spec.data.mixture().values()):
        for place, reason in _never_converted(spec, splits, lines, unknown):
            places.setdefault(place, reason)
    by_reason: dict[str, list[str]] = {}
    for place, reason in places.items():
        if place not in shown:
            by_reason.setdefault(reason, []).append(place)
    return [f"{listed(of_reason, MOST)}: {reason}" for reason, of_reason in by_reason.items()]


def _left_out(spec: Experiment, splits: data.Splits, line: int) -> Places:
    """Rows that cannot be used."""
    for part in splits.quarantine:
        if spec.preview.source not in (None, part.source):
            continue
        for record in part:
            if record.line == line:
                yield f"{record.file}:{line}", f"left out ({record.detail or record.reason.value})"


def _converted(spec: Experiment, splits: data.Splits, counts: RowCounts, line: int) -> Places:
    """Rows that can be used: on the other side, behind those that the run takes, or in no side."""
    import numpy

    train, held = splits.train, splits.heldout
    assert isinstance(train, Rows) and isinstance(held, Rows)
    for place in _places(spec, splits, "heldout", held, line):
        yield place, _of_heldout(spec, counts)
    for place in _places(spec, splits, "train", train, line):
        yield place, _of_train(spec, counts)
    everything = Rows(train.table, numpy.arange(len(train.table.rows)))
    for index in _indices(spec, splits, "train", everything, line):
        file, _ = everything.place(index)
        reasons = (reason for reason, rows in splits.passed.items() if index not in rows.indices)
        yield f"{file}:{line}", f"left out ({next(reasons, HELD_OUT)})"


def _of_heldout(spec: Experiment, counts: RowCounts) -> str:
    if not spec.preview.heldout:
        return "held out (preview.heldout=true shows held-out rows)"
    measured = f"eval.rows={spec.eval.rows} and eval.generations={spec.eval.generations}"
    taken = f"take {counts.heldout} of {counts.heldout_total} held-out rows"
    return f"held out and not measured ({measured} {taken}; raise one of them)"


def _of_train(spec: Experiment, counts: RowCounts) -> str:
    if spec.preview.heldout:
        return "to train on (preview.heldout=false shows training rows)"
    steps = f"training.max_steps={spec.training.max_steps}, each of {spec.training.global_batch} rows,"
    return f"behind the {counts.train} of {counts.total} training rows that {steps} can see (raise it)"


def _places(spec: Experiment, splits: data.Splits, part: str, rows: Rows, line: int) -> Iterator[str]:
    for index in _indices(spec, splits, part, rows, line):
        file, number = rows.place(index)
        yield f"{file}:{number}"


def _indices(spec: Experiment, splits: data.Splits, part: str, rows: Rows, line: int) -> list[int]:
    """The rows on a line, of the source that is asked for."""
    import numpy

    names = splits.tables[part]
    found = numpy.flatnonzero(rows.numbers("line") == line).tolist()
    owners = rows.numbers("table")
    return [index for index in found if spec.preview.source in (None, names[int(owners[index])])]


def _never_converted(spec: Experiment, splits: data.Splits, lines: list[int], unknown: list[int]) -> Places:
    """Rows that a filter leaves out; and lines on which there is no row, or none that was read."""
    left, ends = set(unknown), dict[str, int]()
    for source, rows in _sources(spec, splits):
        for raw in rows:
            ends[raw.file] = raw.line
            if raw.line not in lines:
                continue
            left.discard(raw.line)
            if isinstance(raw.value, dict) and not passes(raw.value, source.filter):
                yield f"{raw.file}:{raw.line}", "left out (the filter of its source does not let it pass)"
    why = listed((f"{file} ends with line {line}" for file, line in ends.items()), MOST)
    if spec.data.streaming:
        why = f"data.streaming reads the first {splits.read.get('train', 0)} rows: this run needs no more"
    for line in sorted(left):
        yield f"line {line}", f"no row is there ({why})"


def _sources(spec: Experiment, splits: data.Splits) -> Iterator[tuple[Source, Iterable[RawRow]]]:
    """The rows of every part of every source that is asked for, as they are read; of a stream, as many as
    were.
    """
    for name, source in spec.data.mixture().items():
        if spec.preview.source not in (None, name):
            continue
        for part, of_splits in READ:
            rows = open_rows(source, part, key=partial(spec.data.key, name), streaming=spec.data.streaming)
            if rows is not None:
                yield source, islice(rows, splits.read.get(of_splits, 0)) if spec.data.streaming else rows
