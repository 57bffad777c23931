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
from typing import TYPE_CHECKING

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
    available: int  # training rows of the data; of texts, blocks are the rows
    tokenizer_digest: str = ""
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
        train, counts, share = _tokenize_groups(
            tokenize_rows,
            splits.train,
            partial(_put, refused, splits.tables.get("train", [])),
            data.max_train_groups(spec),
            partial(_count_sources, splits),
        )
        heldout, more, _ = _tokenize_groups(
            tokenize_rows,
            candidates,
            partial(_put, refused, splits.tables.get("heldout", [])),
            None if is_text else measured,
        )
        paired = (row for row in heldout if "messages" in row and "rejected" in row)
        # once each, however many sequences its conversation is
        same = groupby(paired, key=lambda row: (row["prompt"], row["rejected"]))
        pairs: Sequence[Row] = [next(rows) for _, rows in same]
        if pairs:
            pairs = data.tokenize_cached(tokenize_pairs, tokenizer, digest, pairs, *limit).rows
    counts += more
    splits.truncated = counts["truncated"]
    splits.quarantine += refused.values()
    together = data.Quarantine(records=[record for part in refused.values() for record in part])
    together.counts = sum((part.counts for part in refused.values()), Counter())
    splits.dropped += together.details()
    together.check(spec.data, f"data={spec.data.name}", len(splits.train) + len(splits.heldout))
    if not train:
        reasons = "; ".join(f"{count}: {reason}" for reason, count in together.details().items())
        raise UserError(
            f"data.max_length={spec.data.max_length}: no row is left to train on ({reasons}); raise it, "
            "or give other rows."
        )
    _require_embedded(spec, model_folder, tokenizer, [train, heldout], console)
    available = len(train) if is_text else round(share * len(splits.train))
    tokens = TokenizedData(splits, model_folder, tokenizer, train, heldout, available, digest, pairs)
    for line in (describe_rows(tokens), *data.describe_counts(counts), *splits.findings):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return tokens


def _tokenize_groups(
    tokenize_rows: Callable[[Sequence[Row]], data.Tokenized],
    rows: Sequence[Row],
    refuse: Callable[[Sequence[Row], int, BadRow], None],
    count: int | None,
    tell: Callable[[Sequence[Row], data.Tokenized], None] | None = None,
) -> tuple[Sequence[Row], Counter[str], float]:
    """(the first `count` groups that can be used, of all for None; what was counted on the way; the tokenized
    rows per row). A group that is dropped, as too long, is replaced by the next one; `refuse` gets its rows,
    and `tell` what became of all.
    """
    starts = [*data.group_starts(rows).tolist(), len(rows)] if count is not None else [0, len(rows)]
    parts: list[data.TokenRows] = []
    counts: Counter[str] = Counter()
    first, taken, missing = 0, 0, 1 if count is None else count
    while missing > 0 and first < len(starts) - 1:
        end = min(first + missing, len(starts) - 1)
        block = rows[starts[first] : starts[end]]
        tokenized = tokenize_rows(block)
        parts.append(tokenized.rows)
        taken += len(tokenized.rows)
        counts += tokenized.counts
        if tell:
            tell(block, tokenized)
        for index, bad_row in tokenized.dropped:
            refuse(block, index, bad_row)
        first = end
        missing = 0 if count is None else count - sum(len(data.group_starts(part)) for part in parts)
    return data.join_token_rows(parts), counts, taken / starts[first] if starts[first] else 0.0


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
    if not isinstance(rows, Rows) or not len(tokenized.rows):
        return
    if not tokenized.indices:
        if len(names) == 1:
            counts[names[0]].tokens += data.total_tokens(tokenized.rows)
        return
    indices, tokens = numpy.array(tokenized.indices), tokenized.rows.token_counts()
    owners = rows.numbers("table")[indices]
    for number, name in enumerate(names):
        is_own = owners == number
        truncated, answers, trained = map(int, tokenized.counted[is_own].sum(axis=0))
        of_source = counts[name]
        of_source.tokenized += len(numpy.unique(indices[is_own]))
        of_source.tokens += int(tokens[is_own].sum())
        of_source.answers += answers
        of_source.answers_trained += trained
        of_source.truncated += truncated


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


def describe_rows(tokens: TokenizedData) -> str:
    """What became of the rows, in a line."""
    dropped = sorted(tokens.splits.dropped.items())
    left_out = "; ".join(f"{count} left out: {reason}" for reason, count in dropped) or "none left out"
    none = " (all share a prompt or a turn with another: name held-out rows with data.eval_path)"
    heldout = f"{len(tokens.heldout)} held out{'' if tokens.splits.heldout else none}"
    used = f"{len(tokens.train)} of {tokens.available} to train on, {heldout}"
    return f"rows: {used}; {left_out}; {tokens.splits.truncated} cut at data.max_length"
