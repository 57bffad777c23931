"""The rows of an experiment as token ids: what a run trains on, and what is previewed.

Needs a tokenizer, and neither weights nor an accelerator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from .. import data
from ..config import Experiment, Format
from ..data import Row
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
    train: list[Row]
    heldout: list[Row]
    available: int  # training rows of the data; of texts, blocks are the rows
    tokenizer_digest: str = ""
    # held-out conversations whose data has a rejected answer too, as preference rows
    heldout_pairs: list[Row] = field(default_factory=list)


def tokenize(spec: Experiment, splits: data.Splits, model_folder: Path, console: Console) -> TokenizedData:
    """Tokenize, or find it done in the cache. Raises UserError where no row is left."""
    function, tokenizer = data.TOKENIZE[spec.method.format], load_tokenizer(spec.model, model_folder)
    if ranks.world_size() > 1:
        from ..models.device import device_and_dtype

        collectives.init_process_group(cpu=device_and_dtype(spec)[0].type == "cpu")
    digest, limit = tokenizer_digest(tokenizer), spec.data.max_length

    def tokenize_rows(rows: Sequence[Row]) -> data.Tokenized:
        return data.tokenize_cached(function, tokenizer, digest, rows, limit)

    candidates, measured = splits.heldout, max(spec.eval.rows, spec.eval.generations)
    is_text = spec.method.format is Format.text
    if is_text:  # they fill blocks, of which none is replaced
        candidates = data.take_groups(candidates, measured)
    with collectives.main_process_first():
        train, counts, share = _tokenize_groups(tokenize_rows, splits.train, data.max_train_groups(spec))
        heldout, more, _ = _tokenize_groups(tokenize_rows, candidates, None if is_text else measured)
        pairs = [row for row in heldout if "messages" in row and "rejected" in row]
        if pairs:
            pairs = data.tokenize_cached(tokenize_pairs, tokenizer, digest, pairs, limit).rows
    counts += more
    splits.truncated = counts.pop("truncated", 0)
    splits.dropped += counts
    if not train:
        raise UserError(f"data.max_length={limit}: no row fits; raise it, or give shorter rows.")
    _require_embedded(spec, model_folder, tokenizer, [*train, *heldout], console)
    available = len(train) if is_text else round(share * len(splits.train))
    tokens = TokenizedData(splits, model_folder, tokenizer, train, heldout, available, digest, pairs)
    for line in (describe_rows(tokens), *splits.findings):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return tokens


def _tokenize_groups(
    tokenize_rows: Callable[[Sequence[Row]], data.Tokenized], rows: Sequence[Row], count: int | None
) -> tuple[list[Row], Counter[str], float]:
    """(the first `count` groups that can be used, of all for None; what was dropped on the way; the tokenized
    rows per row). A group that is dropped, as too long, is replaced by the next one.
    """
    groups = data.group_pairs(rows)
    taken: list[Row] = []
    counts: Counter[str] = Counter()
    first, tried, missing = 0, 0, len(groups) if count is None else count
    while missing > 0 and first < len(groups):
        block = [rows[index] for group in groups[first : first + missing] for index in group]
        tokenized = tokenize_rows(block)
        taken += tokenized.rows
        counts += tokenized.counts
        counts.update(str(bad_row) for _, bad_row in tokenized.dropped)
        first, tried = first + missing, tried + len(block)
        missing = 0 if count is None else count - len(data.group_pairs(taken))
    return taken, counts, len(taken) / tried if tried else 0.0


def _require_embedded(
    spec: Experiment, folder: Path, tokenizer: PreTrainedTokenizerBase, rows: list[Row], console: Console
) -> None:
    """Refuse rows with tokens that the model has no embedding for, before it is loaded."""
    embedded = embedding_rows(spec.model, folder)
    if embedded is None:
        return
    used = (token for row in rows for column in data.ID_COLUMNS for token in row.get(column, ()))
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
