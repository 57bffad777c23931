"""Tokenized rows as parts to show: what is trained, what is only seen, and what data.max_length cut off."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, islice, pairwise, zip_longest

from ..config import Experiment, Format
from ..data import ID_COLUMNS, Row
from ..data.rows import IGNORE_INDEX
from ..data.table import Rows
from ..data.token_rows import TOKEN_COLUMNS, Tokenized, count_tokens, max_sequence_length
from ..report.render.preview import Kind, Part, ShownRow
from ..runtime.errors import UserError
from .preview_tokens import Decoder, Piece

UNITS = {  # what is shown, one by one
    Format.conversation: "sequence",
    Format.text: "block",
    Format.preference: "pair",
    Format.unpaired: "answer",
}
BESIDE = {"chosen_ids": "chosen", "rejected_ids": "rejected"}


def uncut_rows(tokenize: Callable[[list[Row]], Tokenized], rows: Sequence[Row], shortest: int) -> list[Row]:
    """The rows as they are without a limit, as `tokenize` makes them by the functions that training uses.

    Those of at least `shortest` tokens can have been cut, and are tokenized again. Of a row that becomes
    several sequences, each is found by its tokens.
    """
    uncut = list(rows)
    reached = [
        index
        for index, row in enumerate(rows)
        if "seq_lengths" not in row and max_sequence_length(row) >= shortest
    ]
    if not reached:
        return uncut
    sources = [{key: value for key, value in rows[at].items() if key not in TOKEN_COLUMNS} for at in reached]
    whole = tokenize(sources)
    for row, source in zip(whole.rows, whole.indices, strict=True):
        if is_part_of(rows[reached[source]], row):
            uncut[reached[source]] = row
    return uncut


class Origins:
    """Which source, file and line rows come from. A block of texts has no single one."""

    def __init__(self, rows: Sequence[Row], sources: Sequence[str]) -> None:
        self.converted: Rows | None = getattr(rows, "converted", None)
        self.sources, self.count = sources, len(rows)

    def of_source(self, name: str | None) -> list[int]:
        """The rows of one source; of all sources for None."""
        if name is None or self.converted is None:
            return list(range(self.count))
        tables = self.converted.numbers("table").tolist()
        return [index for index, table in enumerate(tables) if self.sources[table] == name]

    def on_lines(self, indices: Sequence[int], lines: Sequence[int]) -> list[int]:
        """Those of the rows that come from one of the lines."""
        numbers = [] if self.converted is None else self.converted.numbers("line").tolist()
        return [index for index in indices if numbers[index : index + 1] and numbers[index] in lines]

    def in_turns(self, indices: Sequence[int], count: int) -> list[int]:
        """The first of the rows, of each source in turn."""
        tables = [0] * self.count if self.converted is None else self.converted.numbers("table").tolist()
        by_source: dict[int, list[int]] = {}
        for index in indices:
            found = by_source.setdefault(tables[index], [])
            if len(found) < count:
                found.append(index)
        return [index for turn in zip_longest(*by_source.values()) for index in turn if index is not None][
            :count
        ]

    def place(self, index: int) -> str:
        """`rows.jsonl:17`; empty where it is not known."""
        return "" if self.converted is None else ":".join(map(str, self.converted.place(index)))

    def describe(self, index: int) -> str:
        """`hh, rows.jsonl:17`; empty where it is not known."""
        if self.converted is None:
            return ""
        source = self.sources[int(self.converted.numbers("table")[index])]
        return f"{source}, {self.place(index)}"


def choose(spec: Experiment, rows: Sequence[Row], whole: Sequence[Row], origins: Origins) -> list[int]:
    """Which rows are shown: those of preview.lines, else the first of each source in turn, and one that was
    cut. `whole` are the first of the rows without a limit. Raises UserError for a source that is not there.
    """
    wanted, names = spec.preview, list(spec.data.mixture())
    if wanted.source is not None and wanted.source not in names:
        raise UserError(f"preview.source={wanted.source}: no such source; give one of {', '.join(names)}.")
    of_source = origins.of_source(wanted.source)
    if wanted.lines is not None:
        return _on_lines(spec, of_source, origins)
    chosen = origins.in_turns(of_source, wanted.rows)
    cut = (index for index in of_source if index < len(whole) and is_cut(rows[index], whole[index]))
    if chosen and not any(is_cut(rows[index], whole[index]) for index in chosen if index < len(whole)):
        chosen += islice(cut, 1)
    return chosen


def _on_lines(spec: Experiment, indices: Sequence[int], origins: Origins) -> list[int]:
    wanted = spec.preview
    assert wanted.lines is not None
    if spec.method.format is Format.text:
        lines = f"preview.lines=[{','.join(map(str, wanted.lines))}]"
        raise UserError(f"{lines}: a block of texts comes from many lines; leave it out.")
    return origins.on_lines(indices, wanted.lines)


def is_cut(row: Row, whole: Row) -> bool:
    """Whether tokens of a row were cut off."""
    return count_tokens(row) < count_tokens(whole)


def describe_place(index: int, spec: Experiment, origins: Origins) -> str:
    """Where a row stands in training, and where it comes from."""
    side = "held-out" if spec.preview.heldout else "training"
    place = f"{side} {UNITS[spec.method.format]} {index + 1:,}"
    return " · ".join(filter(None, (place, origins.describe(index))))


def is_part_of(row: Row, whole: Row) -> bool:
    """Whether a row's ids are those of another one, with nothing but ends cut off."""
    return all(find(row[name], whole.get(name, [])) is not None for name in ID_COLUMNS if name in row)


def find(part: Sequence[int], whole: Sequence[int]) -> tuple[int, int] | None:
    """(head, start): the part is whole[:head], which is nothing or BOS, and what begins at `start`; None
    where it is no part. The end of the whole is preferred to its middle.
    """
    for head in (0, 1):
        rest = part[head:]
        for start in (head, len(whole) - len(rest)):
            if start >= head and [*whole[:head], *whole[start : start + len(rest)]] == list(part):
                return head, start
        found = _search(rest, whole)
        if found is not None and list(whole[:head]) == list(part[:head]):
            return head, found
    return None


def _search(part: Sequence[int], whole: Sequence[int]) -> int | None:
    width = array("q").itemsize
    found, content, wanted = -1, array("q", whole).tobytes(), array("q", part).tobytes()
    while (found := content.find(wanted, found + 1)) >= 0:
        if found % width == 0:
            return found // width
    return None


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
    place = find(kept, whole)
    assert place is not None
    head, start = place
    pieces = list(zip(kept, kinds, strict=True))
    before, after = whole[head:start], whole[start + len(kept) - head :]
    return [
        *pieces[:head],
        *((token, Kind.cut) for token in before),
        *pieces[head:],
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
