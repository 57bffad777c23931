"""All rows of one experiment: converted, the unusable ones counted, held-out prompts kept out of training, in a seeded order."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ..config import BadRows, Data, Experiment, Format
from .formats import BadRow, DataError, UninformativeRow, converter

Row = dict[str, Any]


@dataclass
class Splits:
    """What an experiment trains on and is measured on, and what became of the rest."""

    train: list[Row]
    heldout: list[Row]
    digest: str  # sha256 of the rows as they were read: the same for every method and seed
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> rows
    truncated: int = 0


def split_pairs(spec: Experiment, train: list[Row], heldout: list[Row] | None) -> Splits:
    """The rows as they were read, converted, split and shuffled. Raises DataError in one sentence."""
    dropped: Counter[str] = Counter()
    digest = hashlib.sha256(json.dumps([train, heldout], sort_keys=True, default=str).encode()).hexdigest()
    train = _converted(spec, train, dropped)
    if heldout is None:
        train, heldout = _hold_out(train, spec.data)
    else:
        heldout = _converted(spec, heldout, dropped) if heldout else []
        train = _without_prompts_of(heldout, train, dropped)
    return Splits(train=_shuffled(train, spec.training.seed), heldout=heldout, digest=digest, dropped=dropped)


def max_train_rows(spec: Experiment) -> int | None:
    """How many training rows a run of `max_steps` can see, or None where it may see all: the others need no work.

    Texts are packed: how many of them fill so many blocks is known only once they are tokens.
    """
    bounded = spec.training.max_steps > 0 and spec.method.format is not Format.text
    return spec.training.max_steps * spec.training.global_batch if bounded else None


def _converted(spec: Experiment, rows: list[Row], dropped: Counter[str]) -> list[Row]:
    said = f"data={spec.data.name}" + (f" data.path={spec.data.path}" if spec.data.path else "")
    convert = converter(spec.method.format, rows, said)
    good: list[Row] = []
    bad: list[tuple[int, str]] = []
    for number, row in enumerate(rows, start=1):
        try:
            good += convert(row)
        except UninformativeRow as reason:
            dropped[str(reason)] += 1
        except BadRow as reason:
            bad.append((number, str(reason)))
    if bad and spec.data.bad_rows is BadRows.error:
        first = "; ".join(f"row {number}: {reason}" for number, reason in bad[:3])
        raise DataError(
            f"{said}: {len(bad)} of {len(rows)} rows cannot be used ({first}); mend them, or leave them out with data.bad_rows=drop."
        )
    dropped.update(reason for _, reason in bad)
    return good


def prompt_messages(row: Row) -> list[dict[str, str]]:
    """The messages that are answered: all before the last turn. Empty for a text, which answers nobody."""
    return row["prompt"] if "prompt" in row else row.get("messages", [])[:-1]


def _key(row: Row) -> str:
    """What must not be both trained on and held out: the prompt, or the text itself."""
    return hashlib.sha256(json.dumps(prompt_messages(row) or row["text"], sort_keys=True).encode()).hexdigest()


def _hold_out(rows: list[Row], data: Data) -> tuple[list[Row], list[Row]]:
    """A share of the prompts, chosen by their hash: the same ones for every seed, method and order of the file."""
    keys = [_key(row) for row in rows]
    prompts = sorted(set(keys))
    held = set(prompts[: min(max(1, round(len(prompts) * data.eval_fraction)), len(prompts) - 1)])
    train = [row for key, row in zip(keys, rows, strict=True) if key not in held]
    return train, [row for key, row in zip(keys, rows, strict=True) if key in held]


def _without_prompts_of(heldout: list[Row], train: list[Row], dropped: Counter[str]) -> list[Row]:
    held = {_key(row) for row in heldout}
    kept = [row for row in train if _key(row) not in held]
    if len(kept) < len(train):
        dropped["the prompt is held out"] += len(train) - len(kept)
    return kept


def _shuffled(rows: list[Row], seed: int) -> list[Row]:
    """The rows in the seed's order; the two halves of a pair stay neighbours, so pairs come in the order that they have when unsplit."""
    found = group_pairs(rows)
    random.Random(seed).shuffle(found)
    return [rows[place] for unit in found for place in unit]


def group_pairs(rows: list[Row]) -> list[list[int]]:
    """The places of rows that belong together: the halves of a pair, a good answer and a bad one behind it; any other row alone."""
    found: list[list[int]] = []
    for place, row in enumerate(rows):
        if found and len(found[-1]) == 1 and _halves(rows[found[-1][0]], row):
            found[-1].append(place)
        else:
            found.append([place])
    return found


def take_groups(rows: list[Row], count: int) -> list[Row]:
    """The rows of the first `count` units: as many pairs whether they were parted or not."""
    return [rows[place] for unit in group_pairs(rows)[:count] for place in unit]


def generation_rows(rows: list[Row], count: int) -> list[Row]:
    """The first row of each of the first `count` units that has a prompt to answer."""
    return [rows[unit[0]] for unit in group_pairs(rows) if prompt_messages(rows[unit[0]])][:count]


def _halves(one: Row, other: Row) -> bool:
    """Whether they are a good and a bad answer to one prompt."""
    return one.get("label") is True and other.get("label") is False and one["prompt"] == other["prompt"]
