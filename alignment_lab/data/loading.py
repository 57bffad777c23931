"""The rows of an experiment: all rows of its data or, with `data.streaming`, no more than the run can use."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from itertools import islice

from ..config import BadRows, Data, Experiment, Format
from .readers import Part, open_rows
from .reasons import DataError
from .rows import RawRow, Row
from .split import Splits, group_pairs, max_train_groups, split_rows

MAX_CHARACTERS_PER_TOKEN = 8  # an upper bound on the average: enough texts are read to fill all blocks
FIRST_TEXTS = 100  # texts that are read first
GROWTH = 4  # where the rows were too few, a fourth as many again is read


def load_rows(spec: Experiment) -> Splits:
    """Read, convert, split and shuffle the rows. Writes nothing.

    Raises DataError, in one sentence, where the data cannot be used or leaves no row to train on.
    """
    splits = _load_streamed(spec) if spec.data.streaming else split_rows(spec, *_read_rows(spec.data))
    if not splits.train:
        reasons = "; ".join(f"{count}: {reason}" for reason, count in splits.dropped.items())
        raise DataError(
            f"data={spec.data.name}: no row is left to train on ({reasons or 'the data holds too few'}); "
            "give more rows, or fix these."
        )
    return splits


class RowStream:
    """Rows that are read when they are taken."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self.rows = rows

    def take(self, count: int) -> list[Row]:
        """The next `count` rows, fewer only at the end of the data."""
        return list(islice(self.rows, count))


def _read_rows(data: Data) -> tuple[list[Row], list[Row] | None]:
    """(training rows, held-out rows or None where `data` names none)."""
    train, heldout = _open(data, "train"), _open(data, "eval")
    return list(train or ()), None if heldout is None else list(heldout)


def _open(data: Data, part: Part) -> Iterator[Row] | None:
    ((name, source),) = data.mixture().items()
    rows = open_rows(source, part, key=partial(data.key, name), streaming=data.streaming)
    return None if rows is None else _readable(rows, data)


def _readable(rows: Iterator[RawRow], data: Data) -> Iterator[Row]:
    for row in rows:
        if row.defect is None:
            yield row.value
        elif data.bad_rows is BadRows.error:
            raise DataError(
                f"data={data.name} data.path={data.path}: {row.place} {row.defect}; correct it, or leave out "
                "such rows with data.bad_rows=drop."
            )


def _load_streamed(spec: Experiment) -> Splits:
    """Read rows in their order until enough are left after the split; the others have no effect."""
    train_rows, heldout_rows = _open(spec.data, "train"), _open(spec.data, "eval")
    heldout = None if heldout_rows is None else _take_heldout(spec, RowStream(heldout_rows))
    stream = RowStream(train_rows or iter(()))
    rows: list[Row] = []
    count = _first_count(spec, heldout)
    while True:
        new_rows = stream.take(count)
        rows += new_rows
        splits = split_rows(spec, rows, heldout)
        if len(new_rows) < count or _is_enough(spec, splits, own_heldout=heldout is not None):
            return splits
        count = len(rows) // GROWTH + 1


def _evaluated_rows(spec: Experiment) -> int:
    """The number of held-out rows that a run evaluates on."""
    return max(spec.eval.rows, spec.eval.generations)


def _take_heldout(spec: Experiment, stream: RowStream) -> list[Row]:
    """Held-out rows of a split or file of their own, a fourth more than needed: some may be unusable.

    Two labeled answers may count as one: the halves of a pair.
    """
    rows_per_group = 2 if spec.method.format is Format.unpaired else 1
    return stream.take(math.ceil(_evaluated_rows(spec) * rows_per_group * (1 + 1 / GROWTH)))


def _first_count(spec: Experiment, heldout: list[Row] | None) -> int:
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
        enough = len(group_pairs(splits.train)) >= (max_train_groups(spec) or 0)
    return enough and (own_heldout or len(group_pairs(splits.heldout)) >= _evaluated_rows(spec))
