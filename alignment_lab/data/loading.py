"""The rows of an experiment: all that there are, or as many as it can see of those that come."""

from __future__ import annotations

import math

from ..config import Experiment, Format
from .formats import DataError
from .sources import Row, Stream, read, streams
from .split import Splits, group_pairs, max_train_rows, split_pairs

LONG = 8  # characters, more than a token has on average: of texts as many are read as surely fill the blocks
TEXTS = 100  # how many texts are asked for first
GROWTH = 4  # where it was not enough, a fourth more is asked for


def load_rows(spec: Experiment) -> Splits:
    """Read, convert, split and shuffle. Raises DataError in one sentence; nothing is written."""
    found = _streamed(spec) if spec.data.streaming else split_pairs(spec, *read(spec.data))
    if not found.train:
        said = (
            "; ".join(f"{count}: {reason}" for reason, count in found.dropped.items())
            or "the data holds too few"
        )
        raise DataError(
            f"data={spec.data.name}: no row is left to train on ({said}); give more rows, or fix these."
        )
    return found


def _streamed(spec: Experiment) -> Splits:
    """Of rows in the order in which they come, as many as leave enough once they are split: the others change nothing, and are not read."""
    stream, other = streams(spec.data)
    heldout = _heldout(spec, other) if other else None
    rows: list[Row] = []
    count = _guess(spec, heldout)
    while True:
        more = stream.take(count)
        rows += more
        found = split_pairs(spec, rows, heldout)
        if len(more) < count or _enough(spec, found, measured=heldout is not None):
            return found
        count = len(rows) // GROWTH + 1


def _measured(spec: Experiment) -> int:
    """How many held-out rows a run looks at."""
    return max(spec.eval.rows, spec.eval.generations)


def _heldout(spec: Experiment, stream: Stream) -> list[Row]:
    """Held-out rows that have a place of their own; of labelled answers, two may be one unit. A fourth may be unusable."""
    twice = 2 if spec.method.format is Format.unpaired else 1
    return stream.take(math.ceil(_measured(spec) * twice * (1 + 1 / GROWTH)))


def _guess(spec: Experiment, heldout: list[Row] | None) -> int:
    """How many rows will do where every row can be used and no two have the same prompt."""
    seen, share = max_train_rows(spec) or TEXTS, spec.data.eval_fraction
    return (
        seen
        if heldout is not None
        else 1 + max(math.ceil(seen / (1 - share)), math.ceil(_measured(spec) / share))
    )


def _enough(spec: Experiment, found: Splits, *, measured: bool) -> bool:
    """Whether the run sees no more than these; `measured`: its held-out rows are there already."""
    training = spec.training
    if spec.method.format is Format.text:
        wanted = training.max_steps * training.global_batch * spec.data.max_length * LONG
        full = sum(len(row["text"]) for row in found.train) >= wanted
    else:
        full = len(found.train) >= (max_train_rows(spec) or 0)
    return full and (measured or len(group_pairs(found.heldout)) >= _measured(spec))
