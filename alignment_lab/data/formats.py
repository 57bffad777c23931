"""Rows in any of the layouts that people use, converted to TRL's dataset types.

Converted rows are `{"messages": [...]}` (conversation), `{"prompt": [...], "chosen": [...], "rejected":
[...]}` (preference, with `margin` where the row has one), `{"prompt": [...], "completion": [...], "label":
bool}` (unpaired) or `{"text": str}`; each list holds `{"role", "content"}`. The converter is chosen by the
columns of all rows; each row is then read by its own columns, so an odd first row decides nothing for the
others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..config import Format
from .reasons import BadRow, DataError, Reason
from .rows import Message, Row

Converter = Callable[[Row], list[Row]]  # raises BadRow

ROLES = {
    "system": "system", "user": "user", "assistant": "assistant", "tool": "tool",
    "human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant", "observation": "tool", "function": "tool",
}  # fmt: skip
# Anthropic HH keeps a whole transcript in one string
TURN_MARKER = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")
ANSWER_COLUMNS = ("completion", "output", "response")
LABEL_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
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
}


def choose_converter(format: Format, columns: set[str], source: str) -> Converter:
    """The function that converts one row to rows of `format`, chosen by the columns that any row has.

    `source` begins the message of the DataError that is raised where no converter fits.
    """
    for fits, convert in CONVERTERS[format]:
        if fits(columns):
            return convert
    names = ", ".join(sorted(columns)) or "(none)"
    raise DataError(f"{source}: has the columns {names}; this method needs {REQUIRED_COLUMNS[format]}.")


def filled_columns(rows: Iterable[Any]) -> set[str]:
    """The columns that any row has a value in."""
    return {key for row in rows if isinstance(row, dict) for key, value in row.items() if value is not None}


def unused_parts(row: Row, format: Format) -> set[str]:
    """The columns that conversion to `format` ignores, and the keys of messages, as `messages[].mood`."""
    return set()


def to_preference(row: Row) -> Row:
    """A preference row, with its margin where it has one."""
    return {**_read_pair(row), **_read_margin(row)}


def to_conversation(row: Row) -> Row:
    """A conversation that ends with the assistant's turn."""
    messages = _read_prompt(row)
    if not _has_conversation(row) and (column := _answer_column(row)):
        messages = messages + _read_messages(row, column, "assistant")
    if not messages or messages[-1]["role"] != "assistant":
        raise BadRow(Reason.not_an_answer, "the conversation does not end with the assistant's turn")
    if all(message["role"] == "assistant" for message in messages):
        raise BadRow(Reason.no_prompt, "the conversation has no turn that the assistant answers")
    return {"messages": messages, **_accepted_answers(row)}


def to_unpaired(row: Row) -> Row:
    """A prompt and one answer, labeled good or bad."""
    label = _read_label(row)
    if _has_conversation(row):
        messages = to_conversation(row)["messages"]
        prompt, completion = messages[:-1], messages[-1:]
    else:
        prompt = _read_prompt(row)
        completion = _read_messages(row, _answer_column(row) or ANSWER_COLUMNS[0], "assistant")
    if not prompt or prompt[-1]["role"] == "assistant":
        raise BadRow(Reason.no_prompt, "no prompt that the completion answers")
    if completion[0]["role"] in ("system", "user") or completion[-1]["role"] != "assistant":
        raise BadRow(Reason.not_an_answer, "the completion is not the assistant's")
    return {"prompt": prompt, "completion": completion, "label": label, **_accepted_answers(row)}


def pair_to_unpaired(row: Row) -> list[Row]:
    """A preference row as two labeled answers to one prompt, the good one first."""
    pair = _read_pair(row)
    chosen, rejected = pair.pop("chosen"), pair.pop("rejected")
    return [{**pair, "completion": chosen, "label": True}, {**pair, "completion": rejected, "label": False}]


def to_text(row: Row) -> Row:
    """One document."""
    if row.get("text") is None:
        raise BadRow(Reason.missing_column, "`text` is missing")
    if not isinstance(row["text"], str):
        raise BadRow(Reason.not_text, "`text` is not a string")
    if not row["text"].strip():
        raise BadRow(Reason.empty, "`text` is empty")
    return {"text": row["text"]}


def _pair_to_conversation(row: Row) -> list[Row]:
    """A preference row as the conversation that was preferred; it keeps its pair."""
    pair = _read_pair(row)
    return [{"messages": pair["prompt"] + pair["chosen"], **pair}]


def _read_pair(row: Row) -> Row:
    """Prompt and both answers. The prompt is the row's own, or the messages that both answers begin with."""
    chosen, rejected = (_read_messages(row, key, "assistant") for key in ("chosen", "rejected"))
    prompt = _read_prompt(row)
    shared = _shared_length(chosen, rejected)
    # the answers hold the whole conversation
    if shared and (not prompt or chosen[0]["role"] in ("system", "user")):
        prompt = (_system_message(row) if chosen[0]["role"] != "system" else []) + chosen[:shared]
        chosen, rejected = chosen[shared:], rejected[shared:]
    if not prompt or prompt[-1]["role"] == "assistant":
        raise BadRow(Reason.no_prompt, "no prompt that `chosen` and `rejected` both answer")
    if chosen == rejected:
        raise BadRow(Reason.equal_answers, "`chosen` equals `rejected`")
    for key, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer or answer[-1]["role"] != "assistant":
            raise BadRow(Reason.not_an_answer, f"`{key}` does not end with the assistant's turn")
        if answer[0]["role"] in ("system", "user"):
            raise BadRow(Reason.no_prompt, f"`{key}` repeats a prompt that the other answer does not have")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **_accepted_answers(row)}


def _read_margin(row: Row) -> Row:
    """By how much the chosen answer is better: `{"margin": float}`, or `{}` where the row has none."""
    margin = row.get("margin")
    if margin is None:
        return {}
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
        raise BadRow(Reason.bad_number, "`margin` is not a finite number")
    return {"margin": float(margin)}


def _read_label(row: Row) -> bool:
    label = row.get("label")
    if label is None:
        raise BadRow(Reason.missing_column, "`label` is missing")
    if isinstance(label, str):
        label = LABEL_WORDS.get(label.strip().lower())
    if not isinstance(label, int | float) or label not in (0, 1):
        raise BadRow(Reason.bad_label, "`label` is neither true nor false")
    return bool(label)


def _has_conversation(row: Row) -> bool:
    """Whether the row holds prompt and answer in one list."""
    return bool(row.get("messages") or row.get("conversations"))


def _answer_column(row: Row) -> str | None:
    """The column that holds the answer where the prompt has a column of its own."""
    return next((column for column in ANSWER_COLUMNS if row.get(column) is not None), None)


def _accepted_answers(row: Row) -> Row:
    """The one extra column that converted rows keep: the accepted strings of a right answer."""
    return {"answer": row["answer"]} if isinstance(row.get("answer"), list) else {}


def _read_prompt(row: Row) -> list[Message]:
    """The messages before the answer, under any column name; empty where the answers carry them."""
    for column in ("messages", "conversations", "prompt", "question"):
        if row.get(column):
            return _system_message(row) + _read_messages(row, column, "user")
    if row.get("instruction"):
        content = "\n\n".join(part for part in (row["instruction"], row.get("input")) if part)
        return [*_system_message(row), {"role": "user", "content": content}]
    return []


def _system_message(row: Row) -> list[Message]:
    return [{"role": "system", "content": row["system"]}] if row.get("system") else []


def _read_messages(row: Row, column: str, role: str) -> list[Message]:
    """The messages of a column: a list, one message, a transcript, or a bare string spoken by `role`."""
    value = row.get(column)
    if isinstance(value, str):
        turns = _parse_transcript(value)
        if role == "user" and turns and turns[-1] == {"role": "assistant", "content": ""}:
            turns = turns[:-1]  # a prompt that ends where the answer would begin
        messages = turns or [Message(role=role, content=value)]
    elif isinstance(value, dict):
        messages = [_read_message(value, column)]
    elif isinstance(value, list):
        messages = [_read_message(item, column) for item in value]
    else:
        raise BadRow(Reason.missing_column, f"`{column}` is missing")
    if not messages or not messages[-1]["content"].strip():
        raise BadRow(Reason.empty, f"`{column}` is empty")
    return messages


def _read_message(item: Any, column: str) -> Message:
    """One message, under OpenAI's keys (role, content) or ShareGPT's (from, value)."""
    fields: Mapping[str, Any] = item if isinstance(item, dict) else {}
    role = fields.get("role") or fields.get("from")
    content = fields.get("content") or fields.get("value")
    if role not in ROLES:
        raise BadRow(Reason.unknown_role, f"`{column}` has a message without a known role")
    if content is not None and not isinstance(content, str):
        raise BadRow(Reason.bad_content, f"`{column}` has a message whose content is not text")
    return {"role": ROLES[role], "content": content or ""}


def _parse_transcript(text: str) -> list[Message]:
    """The Human and Assistant turns of one string; empty where the string is no transcript."""
    parts = TURN_MARKER.split(text)
    if len(parts) < 3 or parts[0].strip():
        return []
    return [
        {"role": "user" if speaker == "Human" else "assistant", "content": content.strip()}
        for speaker, content in zip(parts[1::2], parts[2::2], strict=True)
    ]


def _shared_length(chosen: list[Message], rejected: list[Message]) -> int:
    """The number of leading messages that both share, never the last one: that is the answer."""
    count = 0
    for left, right in zip(chosen[:-1], rejected[:-1], strict=False):
        if left != right:
            break
        count += 1
    return count


def _has_pairs(columns: set[str]) -> bool:
    return {"chosen", "rejected"} <= columns


def _has_answers(columns: set[str]) -> bool:
    conversations = columns & {"messages", "conversations"}
    prompts = columns & {"prompt", "question", "instruction"}
    return bool(conversations or (prompts and columns & set(ANSWER_COLUMNS)))


def _has_labels(columns: set[str]) -> bool:
    return "label" in columns and _has_answers(columns)


def _has_text(columns: set[str]) -> bool:
    return "text" in columns


CONVERTERS: dict[
    Format, list[tuple[Callable[[set[str]], bool], Converter]]
] = {  # the first that fits the columns is used
    Format.preference: [(_has_pairs, lambda row: [to_preference(row)])],
    Format.conversation: [
        (_has_pairs, _pair_to_conversation),
        (_has_answers, lambda row: [to_conversation(row)]),
    ],
    Format.unpaired: [(_has_pairs, pair_to_unpaired), (_has_labels, lambda row: [to_unpaired(row)])],
    Format.text: [(_has_text, lambda row: [to_text(row)])],
}
