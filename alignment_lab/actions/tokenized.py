"""The rows of an experiment as token ids: what a run trains on, and what is previewed.

Needs a tokenizer, and neither weights nor an accelerator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console

from .. import data
from ..config import Experiment, Format
from ..data import Row
from ..data.reasons import BadRow
from ..data.table import Rows
from ..data.tokenization import tokenize_pairs
from ..distributed import collectives, ranks
from ..models.tokenizer import embedding_rows, load_tokenizer, require_embedded, tokenizer_digest
from ..runtime.errors import UserError
from .row_counts import (
    RowCounts,
    count_rows,
    describe_labels,
    describe_rows,
    describe_special_tokens,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenizedData:
    """The rows that this run can see, as token ids; what was dropped or truncated is counted in `splits`."""

    splits: data.Splits
    model_folder: Path
    tokenizer: PreTrainedTokenizerBase
    train: Sequence[Row]
    heldout: Sequence[Row]
    available: int  # of the data, as `train` counts them: sequences, answers, of texts blocks
    tokenizer_digest: str = ""
    counts: RowCounts = field(default_factory=RowCounts)
    lines: Sequence[str] = ()  # what a user should know of all that
    # held-out conversations whose data has a rejected answer too, as preference rows
    heldout_pairs: Sequence[Row] = field(default_factory=list)


def tokenize(spec: Experiment, splits: data.Splits, model_folder: Path, console: Console) -> TokenizedData:
    """Tokenize, or find it done in the cache. Raises UserError where no row is left."""
    function, tokenizer = data.TOKENIZE[spec.method.format], load_tokenizer(spec.model, model_folder)
    if ranks.world_size() > 1:
        from ..models.device import device_and_dtype

        collectives.init_process_group(cpu=device_and_dtype(spec)[0].type == "cpu")
    digest, limit = tokenizer_digest(tokenizer), (spec.data.max_length, spec.data.truncation)

    def tokenize_rows(rows: Sequence[Row]) -> data.Tokenized:
        return data.tokenize_cached(function, tokenizer, digest, rows, *limit)

    candidates, measured = splits.heldout, max(spec.eval.rows, spec.eval.generations)
    is_text = spec.method.format is Format.text
    if is_text:  # they fill blocks, of which none is replaced
        candidates = data.take_groups(candidates, measured)
    refused: dict[str, data.Quarantine] = {}  # by source: rows that the template or the length leaves out
    with collectives.main_process_first():
        of_train = _tokenize_groups(
            tokenize_rows,
            splits.train,
            partial(_put, refused, splits.tables.get("train", [])),
            data.max_train_groups(spec),
            partial(_count_sources, splits),
        )
        of_heldout = _tokenize_groups(
            tokenize_rows,
            candidates,
            partial(_put, refused, splits.tables.get("heldout", [])),
            None if is_text else measured,
        )
        train, heldout = of_train.tokens, of_heldout.tokens
        paired = (row for row in heldout if "messages" in row and "rejected" in row)
        # once each, however many sequences its conversation is
        same = groupby(paired, key=lambda row: (row["prompt"], row["rejected"]))
        pairs: Sequence[Row] = [next(rows) for _, rows in same]
        if pairs:
            pairs = data.tokenize_cached(tokenize_pairs, tokenizer, digest, pairs, *limit).rows
    counts = of_train.counts + of_heldout.counts
    splits.truncated = of_train.cut + of_heldout.cut
    splits.quarantine += refused.values()
    together = data.Quarantine(records=[record for part in refused.values() for record in part])
    together.counts = sum((part.counts for part in refused.values()), Counter())
    splits.dropped += together.details()
    read = count_rows(splits.train) + count_rows(splits.heldout)
    together.check(spec.data, f"data={spec.data.name}", read)
    if not train:
        reasons = data.describe_reasons(together.details())
        raise UserError(
            f"data.max_length={spec.data.max_length}: no row is left to train on ({reasons}); raise it, "
            "or give other rows."
        )
    _require_embedded(spec, model_folder, tokenizer, [train, heldout], console)
    available = len(train) if is_text else round(len(train) / of_train.tried * len(splits.train))
    rows = _count(splits, of_train, of_heldout)
    lines = [
        describe_rows(spec, rows, train, heldout, splits),
        *data.describe_counts(counts),
        *(describe_special_tokens(tokenizer, train) if is_text else ()),
        *describe_labels(spec, train, splits.train),
        *splits.findings,
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return TokenizedData(
        splits, model_folder, tokenizer, train, heldout, available, digest, rows, lines, pairs
    )


class Tried(NamedTuple):
    """The first rows of a part, tokenized: as many as the run needs."""

    tokens: data.TokenRows
    counts: Counter[str]  # of Tokenized
    tried: int  # rows that were tokenized
    refused: int  # of these: that the template or the length leaves out
    cut: int  # rows as they were read, at data.max_length

    def rows(self) -> int:
        """Those that can be used, as they were read. Of texts, whose blocks do not tell, texts."""
        is_blocks = len(self.tokens) and self.tokens.owners is None
        return self.tried - self.refused if is_blocks else count_rows(self.tokens)


def _count(splits: data.Splits, train: Tried, heldout: Tried) -> RowCounts:
    used, total, tried = train.rows(), count_rows(splits.train), count_rows(splits.train[: train.tried])
    available = round(used / tried * total)
    return RowCounts(used, available, tried, total, heldout.rows(), count_rows(splits.heldout))


def _tokenize_groups(
    tokenize_rows: Callable[[Sequence[Row]], data.Tokenized],
    rows: Sequence[Row],
    refuse: Callable[[Sequence[Row], int, BadRow], None],
    count: int | None,
    tell: Callable[[Sequence[Row], data.Tokenized], None] | None = None,
) -> Tried:
    """The first `count` groups that can be used, of all for None.

    A group that is dropped, as too long, is replaced by the next one; `refuse` gets its rows, of both halves
    of a pair the first, and `tell` what became of all.
    """
    starts = [*data.group_starts(rows).tolist(), len(rows)] if count is not None else [0, len(rows)]
    parts: list[data.TokenRows] = []
    counts: Counter[str] = Counter()
    first, refused, cut, missing = 0, 0, 0, 1 if count is None else count
    while missing > 0 and first < len(starts) - 1:
        end = min(first + missing, len(starts) - 1)
        block = rows[starts[first] : starts[end]]
        tokenized = tokenize_rows(block)
        parts.append(tokenized.rows)
        counts += tokenized.counts
        if tell:
            tell(block, tokenized)
        refused += len(tokenized.dropped)
        cut += count_rows(_cut_rows(block, tokenized))
        for index, bad_row in data.as_read(block, tokenized.dropped):
            refuse(block, index, bad_row)
        first = end
        missing = 0 if count is None else count - sum(len(data.group_starts(part)) for part in parts)
    return Tried(data.join_token_rows(parts), counts, starts[first], refused, cut)


def _cut_rows(rows: Sequence[Row], tokenized: data.Tokenized) -> Sequence[Row]:
    """Those of the rows that were cut at data.max_length; of texts, which are split, none."""
    import numpy

    is_cut = numpy.array(tokenized.counted).reshape(-1, len(data.COUNTED))[:, 0] > 0
    indices = numpy.unique(numpy.array(tokenized.indices, int)[is_cut[: len(tokenized.indices)]])
    return rows.select(indices) if isinstance(rows, Rows) else [rows[index] for index in indices.tolist()]


def _put(
    refused: dict[str, data.Quarantine],
    names: list[str],
    rows: Sequence[Row],
    index: int,
    bad_row: BadRow,
) -> None:
    """Put a row into the quarantine of its source."""
    name = names[int(rows.numbers("table")[index])] if isinstance(rows, Rows) and names else ""
    refused.setdefault(name, data.Quarantine(name)).put(data.dropped_record(rows, index, bad_row))


def _count_sources(splits: data.Splits, rows: Sequence[Row], tokenized: data.Tokenized) -> None:
    """Add what training rows came to as tokens to the counts of their sources. Of texts, whose blocks may
    hold several sources, only the tokens of all are known.
    """
    import numpy

    counts = {of_source.name: of_source for of_source in splits.sources}
    names = splits.tables.get("train", [])
    if not isinstance(rows, Rows):
        return
    refused = numpy.array([index for index, _ in data.as_read(rows, tokenized.dropped)], int)
    for name, number in zip(names, data.count_as_read(rows.select(refused), len(names)), strict=False):
        counts[name].refused += int(number)
    if not tokenized.indices:
        taken = numpy.delete(numpy.arange(len(rows)), refused)
        for name, number in zip(names, data.count_as_read(rows.select(taken), len(names)), strict=False):
            counts[name].tokenized += int(number)
        if len(names) == 1:
            counts[names[0]].tokens += data.total_tokens(tokenized.rows)
        return
    indices, tokens = numpy.array(tokenized.indices), tokenized.rows.token_counts()
    as_read = data.count_as_read(rows.select(numpy.unique(indices)), len(names))
    were_cut = _cut_rows(rows, tokenized)
    assert isinstance(were_cut, Rows)
    cut = data.count_as_read(were_cut, len(names))
    owners = rows.numbers("table")[indices]
    for number, name in enumerate(names):
        is_own = owners == number
        _, answers, trained = map(int, tokenized.counted[is_own].sum(axis=0))
        of_source = counts[name]
        of_source.tokenized += int(as_read[number])
        of_source.tokens += int(tokens[is_own].sum())
        of_source.answers += answers
        of_source.answers_trained += trained
        of_source.truncated += int(cut[number])


def _require_embedded(
    spec: Experiment,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    parts: list[Sequence[Row]],
    console: Console,
) -> None:
    """Refuse rows with tokens that the model has no embedding for, before it is loaded."""
    embedded = embedding_rows(spec.model, folder)
    if embedded is None:
        return
    used = (token for rows in parts for token in data.used_ids(rows))
    if require_embedded(tokenizer, embedded, used, str(spec.model.path)):
        console.print(
            f"tokenizer: its padding token has no row in the embedding; {tokenizer.pad_token} pads instead, "
            "in the saved tokenizer too",
            highlight=False,
            soft_wrap=True,
        )
