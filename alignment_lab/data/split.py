"""Rows of one experiment: converted, split so that no prompt is in both parts, and shuffled by the seed."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from dataclasses import dataclass, field

from ..config import BadRows, Data, Experiment, Format
from .formats import BadRow, DataError, UninformativeRow, choose_converter
from .rows import Message, Row


@dataclass
class Splits:
    """The converted rows of an experiment, and what became of the rest."""

    train: list[Row]
    heldout: list[Row]
    digest: str  # sha256 of the rows as they were read: the same for every method and seed
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> rows
    truncated: int = 0


def split_rows(spec: Experiment, train: list[Row], heldout: list[Row] | None) -> Splits:
    """Convert, split and shuffle rows. Without `heldout`, a fraction of the prompts of `train` is held out.

    Raises DataError in one sentence.
    """
    dropped: Counter[str] = Counter()
    digest = hashlib.sha256(json.dumps([train, heldout], sort_keys=True, default=str).encode()).hexdigest()
    train = _convert(spec, train, dropped)
    if heldout is None:
        train, heldout = _hold_out(train, spec.data)
    else:
        heldout = _convert(spec, heldout, dropped) if heldout else []
        train = _without_prompts_of(heldout, train, dropped)
    return Splits(train=_shuffle(train, spec.training.seed), heldout=heldout, digest=digest, dropped=dropped)


def max_train_rows(spec: Experiment) -> int | None:
    """The most training rows that a run of `max_steps` can see; None where it may see all of them.

    For texts it is None: how many fill a number of packed blocks is known only once they are tokenized.
    """
    bounded = spec.training.max_steps > 0 and spec.method.format is not Format.text
    return spec.training.max_steps * spec.training.global_batch if bounded else None


def prompt_messages(row: Row) -> list[Message]:
    """The messages before the answer: the prompt, or all but the last turn; none for a text."""
    messages: list[Message] = row["prompt"] if "prompt" in row else row.get("messages", [])[:-1]
    return messages


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
    """Rows to generate answers for: the first row of each of the first `count` groups with a prompt."""
    first_rows = [rows[group[0]] for group in group_pairs(rows)]
    return [row for row in first_rows if prompt_messages(row)][:count]


def _convert(spec: Experiment, rows: list[Row], dropped: Counter[str]) -> list[Row]:
    """Rows in the method's format. Bad rows are a DataError, or counted with `data.bad_rows=drop`."""
    source = f"data={spec.data.name}" + (f" data.path={spec.data.path}" if spec.data.path else "")
    convert = choose_converter(spec.method.format, rows, source)
    converted: list[Row] = []
    bad_rows: list[tuple[int, str]] = []
    for number, row in enumerate(rows, start=1):
        try:
            converted += convert(row)
        except UninformativeRow as reason:
            dropped[str(reason)] += 1
        except BadRow as reason:
            bad_rows.append((number, str(reason)))
    if bad_rows and spec.data.bad_rows is BadRows.error:
        examples = "; ".join(f"row {number}: {reason}" for number, reason in bad_rows[:3])
        raise DataError(
            f"{source}: {len(bad_rows)} of {len(rows)} rows cannot be used ({examples}); "
            "fix them, or leave them out with data.bad_rows=drop."
        )
    dropped.update(reason for _, reason in bad_rows)
    return converted


def _prompt_key(row: Row) -> str:
    """A hash of what must not be both trained on and held out: the prompt, or the text itself."""
    prompt = prompt_messages(row) or row["text"]
    return hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()


def _hold_out(rows: list[Row], data: Data) -> tuple[list[Row], list[Row]]:
    """(train, held out): prompts are chosen by their hash, whatever the seed, method and file order."""
    keys = [_prompt_key(row) for row in rows]
    prompts = sorted(set(keys))
    # one is always left to train on
    count = min(max(1, round(len(prompts) * data.eval_fraction)), len(prompts) - 1)
    heldout = set(prompts[:count])
    train = [row for key, row in zip(keys, rows, strict=True) if key not in heldout]
    return train, [row for key, row in zip(keys, rows, strict=True) if key in heldout]


def _without_prompts_of(heldout: list[Row], train: list[Row], dropped: Counter[str]) -> list[Row]:
    heldout_keys = {_prompt_key(row) for row in heldout}
    kept = [row for row in train if _prompt_key(row) not in heldout_keys]
    if len(kept) < len(train):
        dropped["the prompt is held out"] += len(train) - len(kept)
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
