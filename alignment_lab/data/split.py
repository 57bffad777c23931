"""Rows of one experiment: converted, split so that the parts share no prompt and no turn, and shuffled by the
seed.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from dataclasses import dataclass, field

from ..config import BadRows, Data, Experiment, Format
from ..runtime.files import json_digest
from .formats import choose_converter, filled_columns
from .overlap import connected, preferred_messages, prompt_key, prompt_messages, shared_keys
from .reasons import BadRow, DataError
from .rows import Row


@dataclass
class Splits:
    """The converted rows of an experiment, and what became of the rest."""

    train: list[Row]
    heldout: list[Row]
    digest: str  # sha256 of the rows as they were read: the same for every method and seed
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> rows
    truncated: int = 0
    read: dict[str, int] = field(default_factory=dict)  # rows of each part as they were read


def split_rows(spec: Experiment, train: list[Row], heldout: list[Row] | None) -> Splits:
    """Convert, split and shuffle rows. Without `heldout`, a fraction of the prompts of `train` is held out.

    Raises DataError in one sentence.
    """
    dropped: Counter[str] = Counter()
    digest = hashlib.sha256(json.dumps([train, heldout], sort_keys=True, default=str).encode()).hexdigest()
    read = {"train": len(train)} | ({} if heldout is None else {"heldout": len(heldout)})
    train = _convert(spec, train, dropped)
    if heldout is None:
        train, heldout = _hold_out(train, spec.data)
    else:
        heldout = _in_hash_order(_convert(spec, heldout, dropped)) if heldout else []
        train = _without_overlap(heldout, train, dropped)
    return Splits(_shuffle(train, spec.training.seed), heldout, digest, dropped, read=read)


def max_train_groups(spec: Experiment) -> int | None:
    """The most groups of training rows that a run of `max_steps` can see; None where it may see all of them.

    For texts it is None: how many fill a number of packed blocks is known only once they are tokenized.
    """
    bounded = spec.training.max_steps > 0 and spec.method.format is not Format.text
    return spec.training.max_steps * spec.training.global_batch if bounded else None


def group_pairs(rows: list[Row]) -> list[list[int]]:
    """Indices of rows in groups: a good answer and the bad one after it; any other row alone."""
    groups: list[list[int]] = []
    for index, row in enumerate(rows):
        if groups and len(groups[-1]) == 1 and _are_halves(rows[groups[-1][0]], row):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def take_groups(rows: list[Row], count: int) -> list[Row]:
    """The rows of the first `count` groups: as many pairs whether they are split in two or not."""
    return [rows[index] for group in group_pairs(rows)[:count] for index in group]


def generation_rows(rows: list[Row], count: int) -> list[Row]:
    """Rows to generate answers for: the first row with each of the first `count` prompts."""
    first_rows = {prompt_key(rows[group[0]]): rows[group[0]] for group in reversed(group_pairs(rows))}
    return [row for row in reversed(first_rows.values()) if prompt_messages(row)][:count]


def _convert(spec: Experiment, rows: list[Row], dropped: Counter[str]) -> list[Row]:
    """Rows in the method's format. Bad rows are a DataError, or counted with `data.bad_rows=drop`."""
    source = f"data={spec.data.name}" + (f" data.path={spec.data.path}" if spec.data.path else "")
    convert = choose_converter(spec.method.format, filled_columns(rows), source)
    converted: list[Row] = []
    bad_rows: list[tuple[int, str]] = []
    for number, row in enumerate(rows, start=1):
        try:
            converted += convert(row)
        except BadRow as bad:
            if bad.reason.uninformative:
                dropped[str(bad)] += 1
            else:
                bad_rows.append((number, str(bad)))
    if bad_rows and spec.data.bad_rows is BadRows.error:
        examples = "; ".join(f"row {number}: {detail}" for number, detail in bad_rows[:3])
        raise DataError(
            f"{source}: {len(bad_rows)} of {len(rows)} rows cannot be used ({examples}); "
            "fix them, or leave them out with data.bad_rows=drop."
        )
    dropped.update(detail for _, detail in bad_rows)
    return converted


def _hold_out(rows: list[Row], data: Data) -> tuple[list[Row], list[Row]]:
    """(train, held out): conversations are chosen by a hash, whatever the seed, method and file order.

    Those that share a prompt or a turn stay together. Some prompts are always left to train on.
    """
    groups = group_pairs(rows)
    first_rows = [rows[group[0]] for group in groups]
    prompts = list(map(prompt_key, first_rows))
    components: dict[int, set[bytes]] = {}
    numbers = connected(shared_keys(first_rows))
    for number, prompt in zip(numbers, prompts, strict=True):
        components.setdefault(number, set()).add(prompt)
    total = len(set(prompts))
    chosen = _choose_components(components, min(max(1, round(total * data.eval_fraction)), total - 1))
    sides: tuple[list[Row], list[Row]] = ([], [])
    for group, number in zip(groups, numbers, strict=True):
        sides[number in chosen].extend(rows[index] for index in group)
    return sides[0], _in_hash_order(sides[1])


def _choose_components(components: dict[int, set[bytes]], count: int) -> set[int]:
    """Components of about `count` prompts, in the order of their hashes; those that would be too many stay
    in training, unless nothing else is there.
    """
    chosen: set[int] = set()
    left = count
    for number in sorted(components, key=lambda number: hashlib.sha256(min(components[number])).digest()):
        if len(components[number]) <= left:
            chosen.add(number)
            left -= len(components[number])
    if not chosen and len(components) > 1:
        chosen = {min(components, key=lambda number: (len(components[number]), min(components[number])))}
    return chosen


def _in_hash_order(rows: list[Row]) -> list[Row]:
    """Held-out rows in an order without meaning: the first of them are a sample of all. Pairs stay whole."""

    def key(group: list[int]) -> str:
        row = rows[group[0]]
        content = row["text"] if "text" in row else preferred_messages(row)
        return json_digest(content)

    return [rows[index] for group in sorted(group_pairs(rows), key=key) for index in group]


def _without_overlap(heldout: list[Row], train: list[Row], dropped: Counter[str]) -> list[Row]:
    """The training rows that share nothing with a held-out row."""
    groups = group_pairs(train)
    keys = shared_keys([*heldout, *(train[group[0]] for group in groups)])
    heldout_keys = set().union(*keys[: len(heldout)])
    kept = [
        train[index]
        for group, group_keys in zip(groups, keys[len(heldout) :], strict=True)
        if heldout_keys.isdisjoint(group_keys)
        for index in group
    ]
    if len(kept) < len(train):
        dropped["a prompt or a turn of it is held out"] += len(train) - len(kept)
    return kept


def _shuffle(rows: list[Row], seed: int) -> list[Row]:
    """Rows in the seed's order. Split pairs stay together, in the order that unsplit pairs have."""
    groups = group_pairs(rows)
    random.Random(seed).shuffle(groups)
    return [rows[index] for group in groups for index in group]


def _are_halves(first: Row, second: Row) -> bool:
    """Whether these are a good and a bad answer to one prompt."""
    good_then_bad = first.get("label") is True and second.get("label") is False
    return good_then_bad and first["prompt"] == second["prompt"]
