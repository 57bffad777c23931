"""How many rows a run trains and is measured on, in words: rows are counted as they were read.

A pair is one row, whether a method takes it as one or as two answers; a conversation is one, however many
sequences it becomes; a text is one, wherever the blocks that it fills begin.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import data
from ..config import Experiment, Format
from ..data import Row, TokenRows
from ..data.table import Rows
from ..data.turns import added_bos

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class RowCounts:
    """Rows as they were read; of texts, texts."""

    train: int = 0  # that this run trains on
    available: int = 0  # that can be trained on; estimated where not all were tokenized
    tokenized: int = 0  # of those to train on, refused ones too: a run of few steps needs no more
    total: int = 0  # to train on, tokenized or not
    heldout: int = 0  # that are measured
    heldout_total: int = 0


def count_rows(rows: Sequence[Row]) -> int:
    """Rows as they were read; tokenized ones are counted by the rows that they were made from."""
    import numpy

    if isinstance(rows, TokenRows) and rows.owners is not None:
        sources, owners = rows.sources, numpy.unique(rows.owners[rows.positions])
        rows = (
            sources.select(owners) if isinstance(sources, Rows) else [sources[at] for at in owners.tolist()]
        )
    return int(data.count_as_read(rows).sum()) if isinstance(rows, Rows) else len(data.group_starts(rows))


def describe_rows(
    spec: Experiment, counts: RowCounts, train: Sequence[Row], heldout: Sequence[Row], splits: data.Splits
) -> str:
    """What became of the rows, in a line. `train` and `heldout`: as token ids."""
    is_text = spec.method.format is Format.text
    parts = [
        f"rows: {_describe_train(spec, counts, train)}, {_describe_heldout(spec, counts, heldout)}",
        "; ".join(f"{count} left out: {reason}" for reason, count in sorted(splits.dropped.items()))
        or "none left out",
    ]
    if not is_text:  # which are split, and never cut
        parts.append(f"{splits.truncated} cut at data.max_length")
    if counts.tokenized < counts.total:
        parts.append(
            f"what is too long, refused or cut is counted among the {counts.tokenized} of {counts.total} "
            f"training rows that training.max_steps={spec.training.max_steps} needs"
        )
    return "; ".join(parts)


def _describe_train(spec: Experiment, counts: RowCounts, train: Sequence[Row]) -> str:
    if spec.method.format is Format.text:
        return f"{_describe_blocks(train, counts.train)} to train on"
    what = "answers" if spec.method.format is Format.unpaired else "sequences"
    more = f" ({len(train)} {what})" if len(train) != counts.train else ""
    return f"{counts.train} of {counts.available} to train on{more}"


def _describe_blocks(blocks: Sequence[Row], texts: int) -> str:
    of = f"{texts} {_plural('text', texts)} ({data.total_tokens(blocks):,} tokens)"
    return f"{len(blocks)} {_plural('block', len(blocks))} of {of}"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def _describe_heldout(spec: Experiment, counts: RowCounts, heldout: Sequence[Row]) -> str:
    is_measured = bool(spec.eval.rows or spec.eval.generations)
    why = "eval.rows=0 and eval.generations=0"
    if not counts.heldout_total:
        shared = "there is one alone" if counts.total < 2 else "all share a prompt or a turn with another"
        reason = f"{shared}: name held-out rows with data.eval_path"
        return f"0 held out ({reason if is_measured else why})"
    if not is_measured:
        return f"{counts.heldout_total} held out, and none of them measured ({why})"
    if spec.method.format is Format.text:
        of_all = f" of {counts.heldout_total}" if counts.heldout < counts.heldout_total else ""
        return f"{_describe_blocks(heldout, counts.heldout)}{of_all} held out"
    if counts.heldout < counts.heldout_total:
        return f"{counts.heldout} of {counts.heldout_total} held out to measure on"
    return f"{counts.heldout} held out"


def describe_labels(spec: Experiment, train: Sequence[Row], everything: Sequence[Row]) -> list[str]:
    """A sentence where all labeled answers that a run trains on have one label. `everything`: those of the
    data.
    """
    if spec.method.format is not Format.unpaired or not len(train):
        return []
    good, bad = data.count_labels(train)
    if good and bad:
        return []
    label, other, number = ("desirable", "undesirable", good) if good else ("undesirable", "desirable", bad)
    direction = "raise" if good else "lower"
    nothing = "" if good else ", and names nothing to write instead"
    there = data.count_labels(everything)[1 if good else 0]
    if there:
        remedy = (
            f"the data has {there} {other} answers, of which this run takes none: raise training.max_steps"
        )
    else:
        remedy = f"give {other} answers too (label: {'false' if good else 'true'})"
        remedy += ", or train on these with method=sft" * bool(good)
    return [
        f"labels: all {number} answers to train on are {label}: method={spec.method.name} has nothing to set "
        f"them against, and can only {direction} the probability of all of them{nothing}; {remedy}"
    ]


def describe_special_tokens(tokenizer: PreTrainedTokenizerBase, blocks: TokenRows) -> list[str]:
    """A line for each special token whose text documents hold, which is read as the token."""
    ends = added_bos(tokenizer), tokenizer.eos_token_id
    found: Counter[int] = data.special_tokens_inside(blocks, tokenizer.all_special_ids, *ends)
    return [
        f"{count} texts, or parts of them, hold {tokenizer.convert_ids_to_tokens(token)}, and it is read as "
        "the token"
        for token, count in found.most_common()
    ]
