"""Rows of one experiment: split so that the parts share no prompt and no turn, and shuffled by the seed.

All of it is arithmetic on the numbers of rows (see `table`): no row is decoded.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

from ..config import Experiment, Format
from .mixture import SourceCounts
from .overlap import connected, prompt_key, without_formulas
from .prompts import prompt_messages
from .quarantine import Quarantine
from .reasons import BadRow
from .rows import Row
from .table import Ragged, Rows

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray

HELD_OUT = "a prompt or a turn of it is held out"
NOT_CHOSEN = "the mixture does not take it"


@dataclass
class Splits:
    """The converted rows of an experiment, and what became of the rest.

    `train` and `heldout` decode a row when it is taken: `len`, slices, `take_groups` and `group_starts` cost
    nothing, while `for row in splits.train` parses each row anew, in constant memory. Do not make lists of
    them, and go through them once.
    """

    train: Sequence[Row]
    heldout: Sequence[Row]
    digest: str  # sha256 of the rows as they were read: the same for every method and seed
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> rows
    truncated: int = 0
    read: dict[str, int] = field(default_factory=dict)  # rows of each part as they were read
    quarantine: list[Quarantine] = field(default_factory=list, compare=False)  # of each part of each source
    cleaned: dict[str, Any] = field(default_factory=dict, compare=False)  # what was found in training rows
    findings: list[str] = field(default_factory=list, compare=False)  # the same, a line for each
    sources: list[SourceCounts] = field(default_factory=list, compare=False)  # what became of each source
    unused: dict[str, set[str]] = field(default_factory=dict)  # by source: columns and message keys
    # by the reason of leaving out some: the training rows that were left then, in the order of the steps
    passed: dict[str, Rows] = field(default_factory=dict, compare=False)
    # of train and heldout, by the numbers of their tables: the names of the sources
    tables: dict[str, list[str]] = field(default_factory=dict, compare=False)


def max_train_groups(spec: Experiment) -> int | None:
    """The most groups of training rows that a run of `max_steps` can see; None where it may see all of them.

    For texts it is None: how many fill a number of packed blocks is known only once they are tokenized.
    """
    bounded = spec.training.max_steps > 0 and spec.method.format is not Format.text
    return spec.training.max_steps * spec.training.global_batch if bounded else None


def group_starts(rows: Sequence[Row]) -> Array:
    """Where each group of rows begins: a good answer and the bad one after it are one, any other row is
    alone.
    """
    import numpy

    rows = getattr(rows, "converted", None) or rows
    if isinstance(rows, Rows):
        labels, prompts = rows.numbers("label"), rows.numbers("exact")
        is_second = (labels[:-1] == 1) & (labels[1:] == 0) & (prompts[:-1] == prompts[1:])
        return numpy.flatnonzero(numpy.concatenate([[True], ~is_second])[: len(rows)])
    is_second = chain([False], (_are_halves(*pair) for pair in pairwise(rows)))
    return numpy.array([index for index, second in enumerate(is_second) if not second], int)[: len(rows)]


def second_halves(rows: Rows) -> Array:
    """Whether each row is the bad answer of a pair that was read as one row with the good one before it."""
    import numpy

    labels, is_second = rows.numbers("label"), numpy.zeros(len(rows), bool)
    is_second[1:] = (labels[:-1] == 1) & (labels[1:] == 0)
    for name in ("table", "file", "line"):
        numbers = rows.numbers(name)
        is_second[1:] &= numbers[:-1] == numbers[1:]
    return is_second


def count_as_read(rows: Rows, sources: int = 0) -> Array:
    """How many rows these were as they were read, by the numbers of their sources: a pair is one row, whether
    it was split in two or not. At least `sources` numbers, int64.
    """
    import numpy

    return numpy.bincount(rows.numbers("table")[~second_halves(rows)], minlength=sources)


def as_read(rows: Sequence[Row], dropped: Sequence[tuple[int, BadRow]]) -> list[tuple[int, BadRow]]:
    """(index, reason) of rows that are left out: once for both answers of a pair, where the reason is one."""
    if not dropped or not isinstance(rows, Rows):
        return list(dropped)
    is_second, reasons = second_halves(rows), dict(dropped)
    return [(index, bad) for index, bad in dropped if not is_second[index] or reasons.get(index - 1) != bad]


def count_labels(rows: Sequence[Row]) -> tuple[int, int]:
    """(desirable answers, undesirable ones), of labeled rows."""
    converted = getattr(rows, "converted", None) or rows
    if isinstance(converted, Rows):
        good = int((converted.numbers("label") == 1).sum())
    else:
        good = sum(bool(row["label"]) for row in rows)
    return good, len(rows) - good


def group_pairs(rows: Sequence[Row]) -> list[list[int]]:
    """Indices of rows in groups: see `group_starts`."""
    starts = group_starts(rows).tolist()
    ends = [*starts[1:], len(rows)][: len(starts)]
    return [list(range(start, end)) for start, end in zip(starts, ends, strict=True)]


def take_groups(rows: Sequence[Row], count: int) -> Sequence[Row]:
    """The rows of the first `count` groups: as many pairs whether they are split in two or not."""
    starts = group_starts(rows)
    return rows[: int(starts[count])] if count < len(starts) else rows[:]


def generation_rows(rows: Sequence[Row], count: int) -> list[Row]:
    """Rows to generate answers for: the first row with each of the first `count` prompts."""
    found: dict[bytes, Row] = {}
    for start in group_starts(rows):
        if len(found) >= count:
            break
        row = rows[int(start)]
        if prompt_messages(row):
            found.setdefault(prompt_key(row), row)
    return list(found.values())


def hold_out(rows: Rows, share: float) -> tuple[Rows, Rows]:
    """(train, held out): conversations are chosen by a hash, whatever the seed, method and file order.

    Those that share a prompt or a turn stay together. Some prompts are always left to train on.
    """
    import numpy

    groups = groups_of(rows)
    first = rows.select(groups.starts)
    components = connected(*_shared_keys([first]), len(first))
    _, places = numpy.unique(first.numbers("prompt"), return_index=True)
    chosen = _choose_components(
        components[places],
        first.numbers("rank")[places],
        min(max(1, round(len(places) * share)), len(places) - 1),
    )
    is_heldout = numpy.isin(components, chosen)
    train, heldout = (groups.take(numpy.flatnonzero(side)).values for side in (~is_heldout, is_heldout))
    return rows.select(train), in_hash_order(rows.select(heldout))


def hold_out_of_each(rows: Rows, sources: int, share: float) -> tuple[Rows, Rows]:
    """(train, held out): a share of each source's prompts, whatever other sources there are."""
    import numpy

    if sources == 1:
        return hold_out(rows, share)
    owners = rows.numbers("table")
    sides = [hold_out(rows.select(numpy.flatnonzero(owners == source)), share) for source in range(sources)]
    train, held = (
        Rows(rows.table, numpy.concatenate([side.indices for side in each]))
        for each in zip(*sides, strict=True)
    )
    return train, in_hash_order(held)


def in_hash_order(rows: Rows) -> Rows:
    """Held-out rows in an order without meaning: the first of them are a sample of all. Pairs stay whole."""
    groups = groups_of(rows)
    order = rows.select(groups.starts).numbers("order").argsort(kind="stable")
    return rows.select(groups.take(order).values)


def without_overlap(heldout: Rows, train: Rows) -> Rows:
    """The training rows that share nothing with a held-out row."""
    import numpy

    groups = groups_of(train)
    first = train.select(groups.starts)
    owners, keys = _shared_keys([heldout, first])
    is_heldout = owners < len(heldout)
    shared = ~is_heldout & numpy.isin(keys, keys[is_heldout])
    is_shared = numpy.bincount(owners[shared] - len(heldout), minlength=len(first)) > 0
    return train.select(groups.take(numpy.flatnonzero(~is_shared)).values)


def shuffle(rows: Rows, seed: int) -> Rows:
    """Rows in the seed's order. Split pairs stay together, in the order that unsplit pairs have."""
    import numpy

    groups = groups_of(rows)
    order = list(range(len(groups.ends)))
    random.Random(seed).shuffle(order)
    return rows.select(groups.take(numpy.array(order, int)).values)


def groups_of(rows: Rows) -> Ragged:
    """The positions of the rows of each group."""
    import numpy

    starts = group_starts(rows)
    return Ragged(numpy.arange(len(rows)), numpy.append(starts[1:], len(rows))[: len(starts)])


def _shared_keys(parts: Sequence[Rows]) -> tuple[Array, Array]:
    """(owner, key) of all that the rows of the parts, one behind the other, may not share across sides: every
    prompt that they answer on their way, every exchange, and every longer turn that is not a formula.
    """
    import numpy

    total = sum(map(len, parts))
    owners: dict[str, list[Array]] = {"prompts": [], "turns": []}
    keys: dict[str, list[Array]] = {"prompts": [], "turns": []}
    offset = 0
    for rows in parts:
        for name in keys:
            lists = rows.lists(name)
            owners[name].append(lists.owners + offset)
            keys[name].append(lists.values)
        offset += len(rows)
    turn_owners, turns = numpy.concatenate(owners["turns"]), numpy.concatenate(keys["turns"])
    told = without_formulas(turns, total)
    return (
        numpy.concatenate([*owners["prompts"], turn_owners[told]]),
        numpy.concatenate([*keys["prompts"], turns[told]]),
    )


def _choose_components(components: Array, ranks: Array, count: int) -> list[int]:
    """Components of about `count` prompts, in the order of their hashes; those that would be too many stay
    in training, unless nothing else is there. Of each prompt, in ascending order: its component and rank.
    """
    import numpy

    numbers, first, sizes = numpy.unique(components, return_index=True, return_counts=True)
    chosen: list[int] = []
    left = count
    for index in ranks[first].argsort(kind="stable"):
        if left <= 0:
            break
        if sizes[index] <= left:
            chosen.append(int(numbers[index]))
            left -= int(sizes[index])
    if not chosen and len(numbers) > 1:
        chosen = [int(numbers[numpy.lexsort((first, sizes))[0]])]
    return chosen


def _are_halves(first: Row, second: Row) -> bool:
    """Whether these are a good and a bad answer to one prompt."""
    good_then_bad = first.get("label") is True and second.get("label") is False
    return good_then_bad and first["prompt"] == second["prompt"]
