"""Which conversion a file of rows needs: told by its columns; and which parts of a row it does not use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from ...config import Format
from ..reasons import BadRow, DataError, Reason
from ..rows import Row
from .answered import to_conversation, to_prompt, to_text, to_unpaired
from .columns import ANSWER_COLUMNS, CONVERSATION_COLUMNS, PROMPT_COLUMNS
from .compared import CHOICE_COLUMNS, VOTES, from_choice, from_scores, from_vote
from .preference import ANSWERS, pair_to_conversation, pair_to_prompt, pair_to_unpaired, to_preference
from .values import describe_type

Converter = Callable[[Any], list[Row]]  # raises BadRow
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
FROM_PAIR: dict[Format, Callable[[Row], list[Row]]] = {
    Format.preference: lambda row: [to_preference(row)],
    Format.conversation: pair_to_conversation,
    Format.unpaired: pair_to_unpaired,
    Format.prompt: pair_to_prompt,
}


def choose_converter(
    format: Format, columns: set[str], source: str, *, rejected: str = "worst", seed: int = 0
) -> Converter:
    """The function that converts one row to rows of `format`, chosen by the columns that any row has.

    `source` begins the message of the DataError that is raised where no converter fits. Of rows with several
    scored answers the best is chosen, and the "worst" or a "random" one of the others `rejected`, by `seed`.
    """
    if format is not Format.text and (to_pair := _find_pairs(columns, rejected, seed)):
        from_pair = FROM_PAIR[format]
        return _checked(from_pair if to_pair is _as_it_is else lambda row: from_pair(to_pair(row)))
    for fits, to_row in FROM_ROW[format]:
        if fits(columns):
            return _checked(partial(_convert_one, to_row))
    names = ", ".join(sorted(map(str, columns))) or "(none)"
    raise DataError(f"{source}: has the columns {names}; this method needs {REQUIRED_COLUMNS[format]}.")


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


def _convert_one(convert: Callable[[Row], Row], row: Row) -> list[Row]:
    return [convert(row)]


def _find_pairs(columns: set[str], rejected: str, seed: int) -> Callable[[Row], Row] | None:
    """What makes a row of prompt, chosen and rejected of a row that has two answers or more; else None."""
    if columns.issuperset(ANSWERS):
        return _as_it_is
    if columns.issuperset(CHOICE_COLUMNS):
        return from_choice
    if any(columns.issuperset((vote, *answers)) for vote, answers in VOTES.items()):
        return from_vote
    return from_scores(rejected, seed) if "completions" in columns and _has_prompt(columns) else None


def _as_it_is(row: Row) -> Row:
    return row


def _has_prompt(columns: set[str]) -> bool:
    return not columns.isdisjoint(PROMPT_COLUMNS)


def _has_conversation(columns: set[str]) -> bool:
    return not columns.isdisjoint(CONVERSATION_COLUMNS)


def _has_answers(columns: set[str]) -> bool:
    return _has_conversation(columns) or (_has_prompt(columns) and not columns.isdisjoint(ANSWER_COLUMNS))


FROM_ROW: dict[Format, list[tuple[Callable[[set[str]], bool], Callable[[Row], Row]]]] = {
    Format.preference: [],
    Format.conversation: [(_has_answers, to_conversation)],
    Format.unpaired: [(lambda columns: "label" in columns and _has_answers(columns), to_unpaired)],
    Format.text: [(lambda columns: "text" in columns, to_text)],
    Format.prompt: [(lambda columns: _has_conversation(columns) or _has_prompt(columns), to_prompt)],
}
