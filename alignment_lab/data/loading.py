"""The rows of an experiment: all rows of its data or, with `data.streaming`, no more than the run can use."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from ..config import Data, Experiment, Format
from ..runtime.digests import digest_files
from ..runtime.files import json_digest
from . import readers
from .cleaning import clean_rows
from .conversion import Conversion
from .mixture import SourceCounts, choose_rows, describe_filtered, require_columns, require_passed, row_counts
from .preparation import Part, Prepared, prepare, prepare_rows
from .readers import Span
from .reasons import DataError, describe_reasons
from .rows import RawRow
from .split import (
    HELD_OUT,
    NOT_CHOSEN,
    Splits,
    count_as_read,
    group_starts,
    groups_of,
    hold_out_of_each,
    in_hash_order,
    max_train_groups,
    shuffle,
    without_overlap,
)
from .table import Rows, join_tables

MAX_CHARACTERS_PER_TOKEN = 8  # an upper bound on the average: enough texts are read to fill all blocks
FIRST_TEXTS = 100  # texts that are read first
STRETCH_BYTES = 4 * 2**20  # of a file, that a process reads at a time
LARGE_BYTES = 64 * 2**20  # a file that cannot be read in stretches, and is not read by one process whole
PARTS: tuple[readers.Part, ...] = ("train", "eval")
GROWTH = 4  # where the rows were too few, a fourth as many again is read


def load_rows(spec: Experiment, *, shuffled: bool = True, trains: bool = True) -> Splits:
    """Read, convert, split and shuffle the rows; else they are in the order of sources, files and lines.

    Writes nothing. Raises DataError, in one sentence, where the data cannot be used, or, for an experiment
    that `trains`, leaves no row to train on.
    """
    splits = _load_streamed(spec) if spec.data.streaming else _load_whole(spec)
    if shuffled:
        assert isinstance(splits.train, Rows)
        splits.train = shuffle(splits.train, spec.training.seed)
    if trains and not splits.train:
        reasons = describe_reasons(splits.dropped) or "the data holds too few"
        raise DataError(
            f"data={spec.data.name}: no row is left to train on ({reasons}); give more rows, or fix these."
        )
    return splits


class RowStream:
    """Rows that are read when they are taken."""

    def __init__(self, rows: Iterator[RawRow]) -> None:
        self.rows = rows

    def take(self, count: int) -> list[RawRow]:
        """The next `count` rows, fewer only at the end of the data."""
        return list(islice(self.rows, count))


def _load_whole(spec: Experiment) -> Splits:
    parts = {
        part: [
            prepared for name in spec.data.mixture() if (prepared := _prepare(spec, name, part)) is not None
        ]
        for part in PARTS
    }
    return split(spec, parts["train"], parts["eval"] or None)


def _prepare(spec: Experiment, name: str, part: readers.Part) -> Prepared | None:
    """The rows of a part of a source; None where it has no such part."""
    data = spec.data
    source = data.mixture()[name]
    key = partial(data.key, name)
    rows = readers.open_rows(source, part, key=key)
    if rows is None:
        return None
    spans = readers.spans(source, part, STRETCH_BYTES, key=key) or []
    sizes = {span.file.path: span.file.path.stat().st_size for span in spans}
    is_split = all(span.end is not None or sizes[span.file.path] < LARGE_BYTES for span in spans)
    conversion = _conversion(spec, name, part)

    def read(span: Span | None = None) -> Iterator[RawRow]:
        found = readers.open_rows(source, part, key=key, span=span)
        assert found is not None
        return found

    try:
        return _checked(
            spec,
            conversion,
            prepare(Part(name, conversion, read, list(sizes), spans if is_split else (), read)),
        )
    except DataError:  # no converter fits: a column that is mapped may not be there
        if source.columns:
            found = (raw.value for raw in read() if isinstance(raw.value, dict))
            require_columns(data, name, set().union(*found))
        raise


def _conversion(spec: Experiment, name: str, part: readers.Part) -> Conversion:
    data = spec.data
    source, label = data.mixture()[name], _label(data, name, part)
    return Conversion(source, spec.method.format, label, data.rejected.name, data.mixture_seed)


def _checked(spec: Experiment, conversion: Conversion, prepared: Prepared) -> Prepared:
    """Raises DataError where too many rows are bad."""
    prepared.quarantine.check(spec.data, conversion.label, prepared.read - prepared.filtered)
    return prepared


def _prepare_taken(spec: Experiment, rows: list[RawRow], part: readers.Part) -> Prepared:
    """Rows that were taken of a stream."""
    (name,) = spec.data.mixture()
    conversion = _conversion(spec, name, part)
    return _checked(spec, conversion, prepare_rows(name, conversion, rows))


def _label(data: Data, name: str, part: readers.Part) -> str:
    """The settings that name rows, as they are typed."""
    source = data.mixture()[name]
    setting = ("eval_path" if source.eval_path else "eval") if part == "eval" else "path"
    value = getattr(source, setting)
    label = "" if data.sources else f"data={data.name} "
    return f"{label}{data.key(name, setting)}={value}" if value else label.strip() or data.key(name, "kind")


def split(spec: Experiment, train: list[Prepared], heldout: list[Prepared] | None) -> Splits:
    """Split the rows of all sources, and choose those to train on.

    Without `heldout`, a fraction of the prompts of each source in `train` is held out.
    """
    data = spec.data
    parts = {"train": train} | ({} if heldout is None else {"heldout": heldout})
    everything = [prepared for part in parts.values() for prepared in part]
    for prepared in everything:
        if prepared.raw_columns:
            name = prepared.quarantine.source
            require_columns(data, name, prepared.raw_columns)
            require_passed(data, name, prepared.read, prepared.filtered)
    rows = _all_rows(train)
    dropped = sum((prepared.quarantine.details() for prepared in everything), Counter())
    if heldout is None:
        rows, held = hold_out_of_each(rows, len(train), data.eval_fraction)
    else:
        held = in_hash_order(_all_rows(heldout))
    left_out: dict[int, Counter[str]] = {}  # by the numbers of sources
    passed: dict[str, Rows] = {}
    if heldout is not None or len(train) > 1:
        kept = without_overlap(held, rows)
        shared = (count_as_read(rows, len(train)) - count_as_read(kept, len(train))).tolist()
        left_out = {number: Counter({HELD_OUT: count}) for number, count in enumerate(shared) if count}
        rows = passed[HELD_OUT] = kept
    cleaned = clean_rows(data.clean, rows, held)
    counts = _count_sources(data, everything)
    for number, reasons in (*left_out.items(), *cleaned.dropped.items()):
        counts[train[number].quarantine.source].dropped += reasons
        dropped += reasons
    rows = _choose(data, [prepared.quarantine.source for prepared in train], cleaned.rows, counts)
    for prepared, count in zip(heldout or train, count_as_read(held, len(heldout or train)), strict=True):
        counts[prepared.quarantine.source].heldout += int(count)
    return Splits(
        rows,
        held,
        json_digest([[prepared.digest for prepared in part] for part in parts.values()] + _benchmarks(data)),
        dropped,
        read={name: sum(prepared.read for prepared in part) for name, part in parts.items()},
        quarantine=[prepared.quarantine for prepared in everything if prepared.quarantine.counts],
        cleaned=cleaned.report,
        findings=[*describe_filtered(data, counts.values()), *cleaned.lines],
        sources=list(counts.values()),
        passed=passed | cleaned.passed | {NOT_CHOSEN: rows},
        tables={
            part: [prepared.quarantine.source for prepared in parts.get(part, train)]
            for part in ("train", "heldout")
        },
        unused={
            name: set().union(*(each.unused for each in everything if each.quarantine.source == name))
            for name in counts
        },
    )


def _benchmarks(data: Data) -> list[str | None]:
    """The content of the files whose prompts are left out."""
    return digest_files([Path(path).expanduser() for path in data.clean.benchmarks])


def _all_rows(parts: list[Prepared]) -> Rows:
    import numpy

    table = join_tables([prepared.table for prepared in parts])
    return Rows(table, numpy.arange(len(table.rows)))


def _count_sources(data: Data, everything: list[Prepared]) -> dict[str, SourceCounts]:
    """What was read of each source, and left out."""
    counts = {name: SourceCounts(name) for name in data.mixture()}
    for prepared in everything:
        of_source = counts[prepared.quarantine.source]
        of_source.read += prepared.read
        of_source.filtered += prepared.filtered
        of_source.dropped += prepared.quarantine.details()
    return counts


def _choose(data: Data, names: list[str], rows: Rows, counts: dict[str, SourceCounts]) -> Rows:
    """The rows of each source that an epoch sees, as often as it sees them. Halves of a pair are one."""
    import numpy

    groups = groups_of(rows)
    first = rows.select(groups.starts)
    keys, owners = first.numbers("order"), first.numbers("table")
    places = {name: numpy.flatnonzero(owners == number) for number, name in enumerate(names)}
    asked = row_counts(data, {name: len(places[name]) for name in names})
    chosen = []
    for name in names:
        taken = choose_rows(keys[places[name]], asked[name], seed=data.mixture_seed, name=name)
        chosen.append(places[name][taken])
    selected = rows.select(groups.take(numpy.concatenate(chosen)).values)
    for name, kept, taken in zip(
        names, count_as_read(rows, len(names)), count_as_read(selected, len(names)), strict=True
    ):
        counts[name].kept, counts[name].chosen = int(kept), int(taken)
    return selected


def _load_streamed(spec: Experiment) -> Splits:
    """Read rows in their order until enough are left after the split; the others have no effect."""
    stream, heldout_stream = _open_stream(spec.data, "train"), _open_stream(spec.data, "eval")
    assert stream is not None
    held = _take_heldout(spec, heldout_stream) if heldout_stream else None
    heldout = None if held is None else [_prepare_taken(spec, held, "eval")]
    rows: list[RawRow] = []
    count = _first_count(spec, heldout)
    while True:
        new_rows = stream.take(count)
        rows += new_rows
        splits = split(spec, [_prepare_taken(spec, rows, "train")], heldout)
        if len(new_rows) < count or _is_enough(spec, splits, own_heldout=heldout is not None):
            return splits
        count = len(rows) // GROWTH + 1


def _open_stream(data: Data, part: readers.Part) -> RowStream | None:
    ((name, source),) = data.mixture().items()
    rows = readers.open_rows(source, part, key=partial(data.key, name), streaming=True)
    return None if rows is None else RowStream(rows)


def _evaluated_rows(spec: Experiment) -> int:
    """The number of held-out rows that a run evaluates on."""
    return max(spec.eval.rows, spec.eval.generations)


def _take_heldout(spec: Experiment, stream: RowStream) -> list[RawRow]:
    """Held-out rows of a split or file of their own, a fourth more than needed: some may be unusable.

    Two labeled answers may count as one: the halves of a pair.
    """
    rows_per_group = 2 if spec.method.format is Format.unpaired else 1
    return stream.take(math.ceil(_evaluated_rows(spec) * rows_per_group * (1 + 1 / GROWTH)))


def _first_count(spec: Experiment, heldout: list[Prepared] | None) -> int:
    """The number of rows that is enough where every row can be used and no two share a prompt."""
    train, fraction = max_train_groups(spec) or FIRST_TEXTS, spec.data.eval_fraction
    if heldout is not None:
        return train
    return 1 + max(math.ceil(train / (1 - fraction)), math.ceil(_evaluated_rows(spec) / fraction))


def _is_enough(spec: Experiment, splits: Splits, *, own_heldout: bool) -> bool:
    """Whether the run needs no more rows. `own_heldout`: the held-out rows were read separately."""
    training = spec.training
    if spec.method.format is Format.text:
        tokens = training.max_steps * training.global_batch * spec.data.max_length
        enough = sum(len(row["text"]) for row in splits.train) >= tokens * MAX_CHARACTERS_PER_TOKEN
    else:
        enough = len(group_starts(splits.train)) >= (max_train_groups(spec) or 0)
    return enough and (own_heldout or len(group_starts(splits.heldout)) >= _evaluated_rows(spec))
