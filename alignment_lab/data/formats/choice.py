"""Which conversion a file of rows needs: told by its columns; and which parts of a row it does not use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from functools import lru_cache, partial
from typing import Any, NamedTuple

from ...config import Format
from ..reasons import BadRow, DataError, Reason
from ..rows import Row
from .answered import to_conversation, to_prompt, to_text, to_unpaired
from .columns import ANSWER_COLUMNS, CONVERSATION_COLUMNS, PROMPT_COLUMNS
from .compared import CHOICE_COLUMNS, VOTES, from_choice, from_scores, from_vote
from .preference import ANSWERS, pair_to_conversation, pair_to_prompt, pair_to_unpaired, to_preference
from .values import describe_type

Converter = Callable[[Any], list[Row]]  # raises BadRow
Columns = set[str] | frozenset[str]
PAIRS_TOO = "preference pairs do as well"
REQUIRED_COLUMNS = {
    Format.preference: "`chosen` and `rejected` (with `prompt`, or as whole conversations)",
    Format.conversation: (
        f"`messages`, `conversations`, `prompt` and `completion`, or `instruction` and `output` ({PAIRS_TOO})"
    ),
    Format.unpaired: (
        "`label` with `prompt` and `completion`, or with `messages` "
        f"({PAIRS_TOO}: a good answer and a bad one)"
    ),
    Format.text: "`text`",
    Format.prompt: f"`prompt`, `question` or `messages` ({PAIRS_TOO})",
}
KNOWN_COLUMNS = (*ANSWERS, *CONVERSATION_COLUMNS, *PROMPT_COLUMNS, *ANSWER_COLUMNS, "label", "text")
FROM_PAIR: dict[Format, Callable[[Row], list[Row]]] = {
    Format.preference: lambda row: [to_preference(row)],
    Format.conversation: pair_to_conversation,
    Format.unpaired: pair_to_unpaired,
    Format.prompt: pair_to_prompt,
}


def choose_converter(
    format: Format, columns: set[str], source: str, *, rejected: str = "worst", seed: int = 0
) -> Converter:
    """The function that converts one row to rows of `format`: by the first shape that the row's own columns
    fit, of those that the columns of all rows fit; where none does, the first of these says what is missing.

    `source` begins the message of the DataError that is raised where no converter fits. Of rows with several
    scored answers the best is chosen, and the "worst" or a "random" one of the others `rejected`, by `seed`.
    """
    if fitting := [shape for shape in _shapes(format, rejected, seed) if shape.fits(columns)]:
        return _checked(fitting[0].convert if len(fitting) == 1 else _choose_by_row(fitting))
    names = ", ".join(sorted(map(str, columns))) or "(none)"
    needed = REQUIRED_COLUMNS[format]
    raise DataError(f"{source}: has the columns {names}; this method needs {needed}{_near_names(columns)}.")


def _near_names(columns: set[str]) -> str:
    """`; rename Chosen to chosen`, of the columns that are nearly called as one that is read."""
    near = {name: get_close_matches(str(name).lower(), KNOWN_COLUMNS, 1, 0.8) for name in columns}
    renamed = [f"{name} to {match[0]}" for name, match in sorted(near.items()) if match and match[0] != name]
    return f"; rename {', '.join(renamed)}" if renamed else ""


def wrapping_column(row: Row, format: Format) -> str | None:
    """The column of a row that is a list of what would be rows of this format themselves."""
    for column, value in row.items():
        if isinstance(value, list) and all(isinstance(item, dict) for item in value):
            columns = filled_columns(value)
            if any(shape.fits(columns) for shape in _shapes(format, "worst", 0)):
                return column
    return None


def filled_columns(rows: Iterable[Any]) -> set[str]:
    """The columns that any row has a value in."""
    return {key for row in rows if isinstance(row, dict) for key, value in row.items() if value is not None}


def _checked(convert: Converter) -> Converter:
    """The same for a row that may be anything but a row."""

    def convert_row(row: Any) -> list[Row]:
        if isinstance(row, dict):
            return convert(row)
        raise not_a_row(row)

    return convert_row


def not_a_row(value: Any) -> BadRow:
    """That something else stands in a row's place."""
    remedy = ': give {"messages": [...]}' if isinstance(value, list) else ""
    return BadRow(Reason.not_a_row, f"the row is {describe_type(value)} and no mapping of columns{remedy}")


class _Shape(NamedTuple):
    fits: Callable[[Columns], bool]  # whether these columns are enough for it
    convert: Converter


def _choose_by_row(shapes: list[_Shape]) -> Converter:
    """Each row by the first shape that its own columns fit: a file may hold pairs beside conversations."""

    first = shapes[0].convert
    are_pairs = shapes[0].fits(frozenset(ANSWERS))

    @lru_cache(maxsize=1024)  # nearly all rows of a file have the same columns
    def choose(filled: frozenset[str]) -> Converter:
        return next((shape.convert for shape in shapes if shape.fits(filled)), first)

    def convert(row: Row) -> list[Row]:
        if are_pairs and not (row.get("chosen") is None and row.get("rejected") is None):
            return first(row)  # half a pair is one that lacks its other half, and no row of another shape
        return choose(frozenset([column for column, value in row.items() if value is not None]))(row)

    return convert


def _shapes(format: Format, rejected: str, seed: int) -> Iterator[_Shape]:
    """Those that rows of a format are made from: two answers or more come before one."""
    if from_pair := FROM_PAIR.get(format):
        yield _Shape(lambda columns: columns.issuperset(ANSWERS), from_pair)
        for fits, to_pair in (
            (lambda columns: columns.issuperset(CHOICE_COLUMNS), from_choice),
            (_has_vote, from_vote),
            (lambda columns: "completions" in columns and _has_prompt(columns), from_scores(rejected, seed)),
        ):
            yield _Shape(fits, partial(_convert_compared, to_pair, from_pair))
    for fits, to_row in FROM_ROW[format]:
        yield _Shape(fits, partial(_convert_one, to_row))


def _convert_compared(to_pair: Callable[[Row], Row], from_pair: Converter, row: Row) -> list[Row]:
    return from_pair(to_pair(row))


def _convert_one(convert: Callable[[Row], Row], row: Row) -> list[Row]:
    return [convert(row)]


def _has_vote(columns: Columns) -> bool:
    return any(columns.issuperset((vote, *answers)) for vote, answers in VOTES.items())


def _has_prompt(columns: Columns) -> bool:
    return not columns.isdisjoint(PROMPT_COLUMNS)


def _has_conversation(columns: Columns) -> bool:
    return not columns.isdisjoint(CONVERSATION_COLUMNS)


def _has_answers(columns: Columns) -> bool:
    return _has_conversation(columns) or (_has_prompt(columns) and not columns.isdisjoint(ANSWER_COLUMNS))


FROM_ROW: dict[Format, list[tuple[Callable[[Columns], bool], Callable[[Row], Row]]]] = {
    Format.preference: [],
    Format.conversation: [(_has_answers, to_conversation)],
    Format.unpaired: [(lambda columns: "label" in columns and _has_answers(columns), to_unpaired)],
    Format.text: [(lambda columns: "text" in columns, to_text)],
    Format.prompt: [(lambda columns: _has_conversation(columns) or _has_prompt(columns), to_prompt)],
}
