"""What a row says that its conversion does not use, so that nothing is thrown away unsaid."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
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
from .messages import CALL_KEYS, CALL_ROLES, MESSAGE_KEYS, REASONING_KEYS, ROLES, WEIGHT_KEYS
from .preference import ANSWERS
from .tools import TOOL_COLUMNS, unused_call_keys, written_calls
from .values import is_given

FREE_COLUMNS = EXTRA_COLUMNS.union(SYSTEM_COLUMNS) - {"answer"}
ASSISTANT_KEYS = frozenset((*CALL_KEYS, *REASONING_KEYS, "prefix"))
SAME_THING = (("role", "from"), ("content", "value"), CALL_KEYS, REASONING_KEYS)  # the first given is read
CONVERSATION_KEYS = MESSAGE_KEYS.union(("prefix",))
TRAINED_KEYS = MESSAGE_KEYS.difference(WEIGHT_KEYS)  # of formats in which a turn has no weight


def unused_parts(row: Row, format: Format) -> set[str]:
    """The columns that conversion to `format` ignores, and the keys of messages, as `messages[].mood`."""
    given = tuple([column for column, value in row.items() if value or is_given(value)])
    accepted = "answer" in row and has_accepted_answers(row)
    unused, with_messages = _sort_columns(given, format, accepted, isinstance(row.get("answer"), str))
    parts = set(unused)
    known = CONVERSATION_KEYS if format is Format.conversation else TRAINED_KEYS
    for column in with_messages:
        value = row[column]
        if isinstance(value, list | dict):
            items = value if isinstance(value, list) else [value]
            parts.update(f"{column}[].{key}" for key in _unused_keys(items, known))
    return parts


@lru_cache(maxsize=1024)  # nearly all rows of a file have the same columns
def _sort_columns(
    given: tuple[str, ...], format: Format, accepted: bool, has_text_answer: bool
) -> tuple[frozenset[str], tuple[str, ...]]:
    """(the columns that are not used, those that are and hold messages) of a row with these columns."""
    if format is Format.text:
        return frozenset(given) - {"text"}, ()
    row = dict.fromkeys(given, "text")
    if not has_text_answer:
        row.pop("answer", None)
    used = _used_columns(row, format) | ({"answer": False} if accepted else {})
    free = FREE_COLUMNS.difference([column for column in TOOL_COLUMNS if column in given][1:])
    unused = (column for column in given if column not in used and column not in free)
    return frozenset(unused), tuple(column for column in given if used.get(column))


def _used_columns(row: Row, format: Format) -> dict[str, bool]:
    """The columns that are converted, and whether each holds messages."""
    if row.get("chosen") is not None and row.get("rejected") is not None:
        margin = {"margin": False} if format is Format.preference else {}
        return {**dict.fromkeys(ANSWERS, True), **margin, **_prompt_columns(row, True)}
    if all(row.get(column) is not None for column in CHOICE_COLUMNS):
        return {**dict.fromkeys(CHOICE_COLUMNS, False)}
    vote = vote_column(row)
    if row.get(vote) is not None:
        context = {"context": True} if row.get("context") is not None else _prompt_columns(row, True)
        return {vote: False, **dict.fromkeys(VOTES[vote], False), **context}
    if row.get("completions") is not None:
        return {"completions": False, **_prompt_columns(row, True)}
    label = {"label": False} if format is Format.unpaired else {}
    whole, answer = conversation_column(row), answer_column(row)
    answers = {answer: True} if answer and not whole and format is not Format.prompt else {}
    return {**label, **answers, **_prompt_columns(row, False)}


def _prompt_columns(row: Row, is_pair: bool) -> dict[str, bool]:
    """Those of the prompt. A pair's own prompt comes before a conversation, any other row's behind it."""
    whole, prompt = conversation_column(row), prompt_column(row)
    if whole and not (is_pair and prompt):
        return {whole: whole != "conversation"}
    if prompt is None:
        return {}
    return {prompt: True, "history": True, **({"input": True} if prompt == "instruction" else {})}


def _unused_keys(items: list[Any], known: frozenset[str]) -> set[Any]:
    """The keys of messages that are not read, with those of their calls, as `tool_calls[].mood`."""
    keys: set[Any] = set()
    for item in items:
        if not isinstance(item, dict):
            continue
        word = item.get("role") or item.get("from")
        if len(item) > 2 or word in CALL_ROLES:
            is_assistant = _speaker(word) == "assistant"
            heard = known if is_assistant else known - ASSISTANT_KEYS
            keys.update(key for key in item if key not in heard and is_given(item[key]))
            keys.update(_second_keys(item))
            if is_assistant:
                keys.update(_keys_of_calls(item, word in CALL_ROLES))
    return keys


def _second_keys(message: dict[Any, Any]) -> Iterator[str]:
    """Keys beside another that says the same thing and is read, where they say something else."""
    for names in SAME_THING:
        given = [key for key in names if is_given(message.get(key))]
        yield from (key for key in given[1:] if not _agree(message[given[0]], message[key]))
    text, prefix = _content(message)[1], message.get("prefix")
    if is_given(prefix) and not (isinstance(prefix, str) and str(text).startswith(prefix)):
        yield "prefix"


def _content(message: dict[Any, Any]) -> tuple[str, Any]:
    key = "content" if is_given(message.get("content")) else "value"
    return key, message.get(key)


def _agree(first: Any, second: Any) -> bool:
    speaker = _speaker(first)
    return bool(first == second or (speaker and speaker == _speaker(second)))


def _keys_of_calls(message: dict[Any, Any], is_call: bool) -> set[str]:
    """`is_call`: the content is the call."""
    key, text = _content(message)
    if is_call and written_calls(text):
        return unused_call_keys(text, key)
    key = next((key for key in CALL_KEYS if is_given(message.get(key))), CALL_KEYS[0])
    return unused_call_keys(message.get(key), key)


def _speaker(word: Any) -> str | None:
    return ROLES.get(word.strip().lower()) if isinstance(word, str) else None
