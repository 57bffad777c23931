"""What a preview consists of, as plain data."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

LINE_END = "↵"
SIGNS = {"\n": f"{LINE_END}\n", "\t": "→\t", "\u00a0": "⍽"}
# format characters that join letters and emoji; the others are unseen, or reorder text
JOINERS = "\u200c\u200d"


class Kind(Enum):
    """What becomes of a token in training."""

    seen = "seen"  # context: the model reads it
    trained = "trained"
    cut = "cut"  # behind data.max_length: the model never sees it


@dataclass(frozen=True, slots=True)
class Token:
    """A token, or those few that together are one character."""

    text: str
    ids: tuple[int, ...]
    special: bool = False

    @property
    def visible(self) -> str:
        """The text with a sign for whatever cannot be seen; safe to print on a terminal."""
        text = self.text
        if text and not text.strip(" "):
            return "␣" * len(text)
        if not text.strip():
            return "".join(_sign(character).replace(" ", "␣") for character in text)
        return "".join(
            character if character.isprintable() or character in JOINERS else _sign(character)
            for character in text
        )


def _sign(character: str) -> str:
    """A control character as its picture, and another one that cannot be seen as its code point."""
    if character in SIGNS:
        return SIGNS[character]
    if character < " ":
        return chr(0x2400 + ord(character))
    if character.isprintable():
        return character
    if unicodedata.category(character) in ("Co", "Cn"):  # an emoji that Python does not know yet
        return character
    return f"⟨U+{ord(character):04X}⟩"


@dataclass(frozen=True)
class Run:
    """Neighboring tokens of one kind, those in the middle of a long one left out."""

    kind: Kind
    head: tuple[Token, ...]
    omitted: int = 0  # tokens between head and tail
    tail: tuple[Token, ...] = ()

    @property
    def count(self) -> int:
        """Its tokens, those that are left out too."""
        return sum(len(token.ids) for token in (*self.head, *self.tail)) + self.omitted

    def clipped(self, head: int, tail: int) -> Run:
        """The run with at most so many tokens of its beginning and of its end."""
        shown = (*self.head, *self.tail)
        if len(shown) <= head + tail + 1:
            return self
        beginning, end = self.head[:head], (self.tail or self.head[head:])[-tail:]
        kept = sum(len(token.ids) for token in (*beginning, *end))
        return replace(self, head=beginning, tail=end, omitted=self.count - kept)


@dataclass(frozen=True)
class Part:
    """A prompt, an answer, a conversation or a document."""

    title: str
    runs: tuple[Run, ...]
    omitted: Mapping[Kind, int] = field(default_factory=dict)  # tokens of runs that are left out at the end

    def count(self, kind: Kind) -> int:
        """Its tokens of one kind, those that are left out too."""
        return sum(run.count for run in self.runs if run.kind is kind) + self.omitted.get(kind, 0)

    @property
    def summary(self) -> str:
        """`120 tokens: 20 seen, 100 trained`."""
        counts = {kind: self.count(kind) for kind in Kind}
        kinds = [f"{count:,} {kind.value}" for kind, count in counts.items() if count]
        total = sum(counts.values())
        return f"{total:,} token{'s' * (total != 1)}" + (f": {', '.join(kinds)}" if kinds else "")


@dataclass(frozen=True)
class ShownRow:
    """A row of the data: parts one under the other, then those that stand side by side."""

    place: str  # where it comes from
    parts: tuple[Part, ...] = ()
    beside: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Histogram:
    """Lengths in tokens, as they are before anything is cut."""

    title: str
    lengths: Sequence[int]
    limit: int | None = None  # data.max_length, where it bounds these lengths
    note: str = ""


@dataclass(frozen=True)
class LeftOut:
    """Rows that were left out for one reason, with the first of them."""

    reason: str
    count: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table; columns after the first hold numbers."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Preview:
    """All that is shown."""

    title: str
    facts: Mapping[str, str]
    legend: Mapping[Kind, str]  # what each kind means for this method
    rows: Sequence[ShownRow]
    rows_note: str
    notes: Sequence[str] = ()  # sentences about the rows as a whole
    tables: Sequence[Table] = ()
    histograms: Sequence[Histogram] = ()
    left_out: Sequence[LeftOut] = ()
    template: Mapping[str, Sequence[Token]] = field(default_factory=dict)  # what it adds around the texts
