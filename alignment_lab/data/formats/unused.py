"""What a row says that its conversion does not use, so that nothing is thrown away unsaid."""

from __future__ import annotations

from typing import Any

from ...config import Format
from ..rows import Row
from .columns import (
    EXTRA_COLUMNS,
    SYSTEM_COLUMNS,
    answer_column,
    conversation_column,
    has_accepted_answers,
    prompt_column,
)
from .compared import CHOICE_COLUMNS, VOTES, vote_column
from .messages import MESSAGE_KEYS, WEIGHT_KEYS
from .preference import ANSWERS
from .values import is_given

FREE_COLUMNS = EXTRA_COLUMNS.union(SYSTEM_COLUMNS) - {"answer"}
TRAINED_KEYS = MESSAGE_KEYS.difference(WEIGHT_KEYS)  # of formats in which a turn has no weight


def unused_parts(row: Row, format: Format) -> set[str]:
    """The columns that conversion to `format` ignores, and the keys of messages, as `messages[].mood`."""
    if format is Format.text:
        return {column for column, value in row.items() if column != "text" and is_given(value)}
    used = _used_columns(row, format)
    known = MESSAGE_KEYS if format is Format.conversation else TRAINED_KEYS
    parts: set[str] = set()
    for column, value in row.items():
        if column in used:
            if isinstance(value, list | dict) and used[column]:
                items = value if isinstance(value, list) else [value]
                parts.update(f"{column}[].{key}" for key in _unknown_keys(items, known))
        elif column not in FREE_COLUMNS and is_given(value):
            parts.add(column)
    return parts


def _used_columns(row: Row, format: Format) -> dict[str, bool]:
    """The columns that are converted, and whether each holds messages."""
    used = {"answer": False} if has_accepted_answers(row) else {}
    if row.get("chosen") is not None and row.get("rejected") is not None:
        margin = {"margin": False} if format is Format.preference else {}
        return {**used, **dict.fromkeys(ANSWERS, True), **margin, **_prompt_columns(row, True)}
    if all(row.get(column) is not None for column in CHOICE_COLUMNS):
        return {**used, **dict.fromkeys(CHOICE_COLUMNS, False)}
    vote = vote_column(row)
    if row.get(vote) is not None:
        context = {"context": True} if row.get("context") is not None else _prompt_columns(row, True)
        return {**used, vote: False, **dict.fromkeys(VOTES[vote], False), **context}
    if row.get("completions") is not None:
        return {**used, "completions": False, **_prompt_columns(row, True)}
    label = {"label": False} if format is Format.unpaired else {}
    whole, answer = conversation_column(row), answer_column(row)
    answers = {answer: True} if answer and not whole and format is not Format.prompt else {}
    return {**used, **label, **answers, **_prompt_columns(row, False)}


def _prompt_columns(row: Row, is_pair: bool) -> dict[str, bool]:
    """Those of the prompt. A pair's own prompt comes before a conversation, any other row's behind it."""
    whole, prompt = conversation_column(row), prompt_column(row)
    if whole and not (is_pair and prompt):
        return {whole: whole != "conversation"}
    if prompt is None:
        return {}
    return {prompt: True, "history": True, **({"input": True} if prompt == "instruction" else {})}


def _unknown_keys(items: list[Any], known: frozenset[str]) -> set[Any]:
    return {
        key
        for item in items
        if isinstance(item, dict) and not known.issuperset(item)
        for key in item
        if key not in known and is_given(item[key])
    }
