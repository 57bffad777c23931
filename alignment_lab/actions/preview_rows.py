"""Tokenized rows as parts to show: what is trained, what is only seen, and what data.max_length cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, islice, pairwise, zip_longest

from ..config import Experiment, Format
from ..data import ID_COLUMNS, Row
from ..data.rows import IGNORE_INDEX
from ..data.tokenization import TOKEN_COLUMNS, count_tokens, max_sequence_length
from ..report.render.preview import Kind, Part, ShownRow
from ..runtime.errors import UserError
from .preview_tokens import Decoder, Piece

BESIDE = {"chosen_ids": "chosen", "rejected_ids": "rejected"}


def uncut_rows(tokenize: Callable[[list[Row]], Sequence[Row]], rows: Sequence[Row], limit: int) -> list[Row]:
    """The rows as they are without a limit; `tokenize` makes such rows, by the functions that training uses.

    Only rows that reach the limit can have been cut, and are tokenized again.
    """
    uncut = list(rows)
    candidates = [
        index
        for index, row in enumerate(rows)
        if "seq_lengths" not in row and max_sequence_length(row) >= limit
    ]
    for index in candidates:
        source = {name: value for name, value in rows[index].items() if name not in TOKEN_COLUMNS}
        uncut[index] = next(
            (whole for whole in tokenize([source]) if is_part_of(rows[index], whole)), rows[index]
        )
    return uncut


def choose(spec: Experiment, rows: Sequence[Row], whole: Sequence[Row]) -> list[int]:
    """Which rows are shown: those of preview.lines, else the first of each source in turn, and one that was
    cut. `whole` are the first of the rows without a limit. Raises UserError where none is there.
    """
    wanted, source = spec.preview, spec.preview.source
    of_source = [index for index in range(len(rows)) if source in (None, rows[index].get("source"))]
    if wanted.lines is not None:
        found = [index for index in of_source if rows[index].get("line", index + 1) in wanted.lines]
        if not found:
            raise UserError(
                f"preview.lines={list(wanted.lines)}: no {'held-out' if wanted.heldout else 'training'} row "
                f"comes from {'this line' if len(wanted.lines) == 1 else 'these lines'}; it may be "
                f"{'a training row' if wanted.heldout else 'held out (preview.heldout=true)'} or left out; "
                "without preview.lines the reasons are shown."
            )
        return found
    by_source: dict[str, list[int]] = {}
    for index in of_source:
        by_source.setdefault(rows[index].get("source", ""), []).append(index)
    turns = zip_longest(*by_source.values())
    chosen = [index for turn in turns for index in turn if index is not None][: wanted.rows]
    cut = (index for index in of_source if index < len(whole) and is_cut(rows[index], whole[index]))
    if chosen and not any(is_cut(rows[index], whole[index]) for index in chosen if index < len(whole)):
        chosen += islice(cut, 1)
    return chosen


def is_cut(row: Row, whole: Row) -> bool:
    """Whether tokens of a row were cut off."""
    return count_tokens(row) < count_tokens(whole)


def describe_place(row: Row, index: int, spec: Experiment) -> str:
    """Where a row comes from: its file and line, where they are known; and where it stands in training."""
    side = "held-out" if spec.preview.heldout else "training"
    place = f"{side} {'block' if 'seq_lengths' in row else 'row'} {index + 1:,}"
    origin = f"{row['file']}:{row['line']}" if row.get("file") else ""
    return " · ".join(filter(None, (place, str(row.get("source") or ""), origin)))


def is_part_of(row: Row, whole: Row) -> bool:
    """Whether a row's ids are those of another one, with nothing but ends cut off."""
    return all(find(row[name], whole.get(name, [])) is not None for name in ID_COLUMNS if name in row)


def find(part: Sequence[int], whole: Sequence[int]) -> int | None:
    """Where a part lies in the whole: at its beginning, else at its end; None where at neither."""
    first = len(whole) - len(part)
    if first < 0:
        return None
    if list(whole[: len(part)]) == list(part):
        return 0
    return first if list(whole[first:]) == list(part) else None


def show_row(row: Row, whole: Row, place: str, spec: Experiment, decoder: Decoder) -> ShownRow:
    """A tokenized row; `whole` is the same without a limit."""
    if "seq_lengths" in row:
        return ShownRow(place, tuple(_documents(row, decoder)))
    if "input_ids" in row:
        pieces = _with_cut(row["input_ids"], whole["input_ids"], _label_kinds(row["labels"]))
        return ShownRow(place, (decoder.part("conversation", pieces),))
    of_prompt = Kind.trained if getattr(spec.method, "scores_prompt", False) else Kind.seen
    prompt = _part("prompt", "prompt_ids", row, whole, of_prompt, decoder)
    if spec.method.format is Format.unpaired:
        title = "completion, labeled desirable" if row["label"] else "completion, labeled undesirable"
        return ShownRow(place, (prompt, _part(title, "completion_ids", row, whole, Kind.trained, decoder)))
    answers = (_part(name, column, row, whole, Kind.trained, decoder) for column, name in BESIDE.items())
    return ShownRow(place, (prompt,), tuple(answers))


def _part(title: str, column: str, row: Row, whole: Row, kind: Kind, decoder: Decoder) -> Part:
    ids = row[column]
    return decoder.part(title, _with_cut(ids, whole[column], [kind] * len(ids)))


def _with_cut(kept: Sequence[int], whole: Sequence[int], kinds: Sequence[Kind]) -> list[Piece]:
    """All tokens: those that are kept with their kinds, the others as cut."""
    start = find(kept, whole)
    assert start is not None
    before, after = whole[:start], whole[start + len(kept) :]
    return [
        *((token, Kind.cut) for token in before),
        *zip(kept, kinds, strict=True),
        *((token, Kind.cut) for token in after),
    ]


def _label_kinds(labels: Sequence[int]) -> list[Kind]:
    """Labels as a loss takes them: nothing predicts the first token."""
    return [
        Kind.trained if place and label != IGNORE_INDEX else Kind.seen for place, label in enumerate(labels)
    ]


def _documents(row: Row, decoder: Decoder) -> Iterable[Part]:
    """The documents of a block, each of which is read by itself."""
    lengths = list(row["seq_lengths"])
    for number, (start, end) in enumerate(pairwise([0, *accumulate(lengths)]), start=1):
        ids = row["input_ids"][start:end]
        kinds = [Kind.seen, *[Kind.trained] * (len(ids) - 1)]
        title = f"document {number} of {len(lengths)}"
        yield decoder.part(title, list(zip(ids, kinds, strict=True)))
