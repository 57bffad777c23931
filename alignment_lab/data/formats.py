"""The shapes in which people keep conversations and preferences, brought to TRL's dataset types.

Out come `{"messages": [...]}` (language modelling) or `{"prompt": [...], "chosen": [...], "rejected": [...]}` (preference), each a list of
`{"role", "content"}`. A row is judged by itself: one odd first row decides nothing for the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ..errors import UserError
from ..spec import Format

Row = dict[str, Any]
Message = dict[str, str]
ROLES = {
    "system": "system", "user": "user", "assistant": "assistant", "tool": "tool",
    "human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "function_call": "assistant", "observation": "tool", "function": "tool",
}  # fmt: skip
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")  # Anthropic HH keeps a whole transcript in one string
NEEDS = {
    Format.preference: "`chosen` and `rejected` (with `prompt`, or as whole conversations)",
    Format.conversation: "`messages`, `conversations`, `prompt` and `completion`, or `instruction` and `output` (preference pairs do as well)",
}


class DataError(UserError):
    """Rows that cannot be read or used."""


class BadRow(ValueError):
    """One row lacks what it needs. The text is the reason, the same for the same defect, so that reasons can be counted."""


class EmptyRow(BadRow):
    """A row that is whole and teaches nothing; real data sets hold some, so it is left out and counted, never an error."""


def converter(format: Format, rows: list[Row], said: str) -> Callable[[Row], Row]:
    """The function that brings a row to `format`, chosen by the columns of all rows. Raises DataError where none fits."""
    columns = {key for row in rows for key, value in row.items() if value is not None}
    pairs = {"chosen", "rejected"} <= columns
    if pairs:
        return preference if format is Format.preference else lambda row: _chosen_only(preference(row))
    if format is Format.conversation and (columns & {"messages", "conversations"} or _turn_columns(columns)):
        return conversation
    raise DataError(f"{said}: has the columns {', '.join(sorted(columns)) or '(none)'}; this method needs {NEEDS[format]}.")


def preference(row: Row) -> Row:
    """One preference row; the prompt is the row's own, or what both answers begin with."""
    chosen, rejected = (_messages(row, key, "assistant") for key in ("chosen", "rejected"))
    prompt = _prompt(row)
    shared = _shared(chosen, rejected)
    if shared and (not prompt or chosen[0]["role"] in ("system", "user")):  # the answers carry the conversation themselves
        prompt = (_system(row) if chosen[0]["role"] != "system" else []) + chosen[:shared]
        chosen, rejected = chosen[shared:], rejected[shared:]
    if not prompt or prompt[-1]["role"] == "assistant":
        raise BadRow("no prompt that `chosen` and `rejected` both answer")
    if chosen == rejected:
        raise EmptyRow("`chosen` equals `rejected`")
    for key, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer or answer[-1]["role"] != "assistant":
            raise BadRow(f"`{key}` does not end with the assistant's turn")
        if answer[0]["role"] in ("system", "user"):
            raise BadRow(f"`{key}` repeats a prompt that the other answer does not have")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **_kept(row)}


def conversation(row: Row) -> Row:
    """One conversation that ends with the assistant's turn."""
    messages = _prompt(row)
    answer = next((key for key in ("completion", "output", "response") if row.get(key) is not None), None)
    if answer and not (row.get("messages") or row.get("conversations")):
        messages = messages + _messages(row, answer, "assistant")
    if not messages or messages[-1]["role"] != "assistant":
        raise BadRow("the conversation does not end with the assistant's turn")
    return {"messages": messages, **_kept(row)}


def _chosen_only(pair: Row) -> Row:
    kept = {key: value for key, value in pair.items() if key not in ("prompt", "chosen", "rejected")}
    return {"messages": pair["prompt"] + pair["chosen"], **kept}


def _kept(row: Row) -> Row:
    """What a row may carry besides its text: the strings that a right answer holds."""
    return {"answer": row["answer"]} if isinstance(row.get("answer"), list) else {}


def _turn_columns(columns: set[str]) -> bool:
    return bool(columns & {"prompt", "instruction"} and columns & {"completion", "output", "response"})


def _prompt(row: Row) -> list[Message]:
    """What comes before the answer, under whichever name; empty where the answers carry it."""
    for key in ("messages", "conversations", "prompt", "question"):
        if row.get(key):
            return _system(row) + _messages(row, key, "user")
    if row.get("instruction"):
        text = "\n\n".join(part for part in (row["instruction"], row.get("input")) if part)
        return [*_system(row), {"role": "user", "content": text}]
    return []


def _system(row: Row) -> list[Message]:
    return [{"role": "system", "content": row["system"]}] if row.get("system") else []


def _messages(row: Row, key: str, role: str) -> list[Message]:
    """The messages under `key`: a list of them, one of them, a transcript, or a bare string said by `role`."""
    value = row.get(key)
    if isinstance(value, str):
        turns = _transcript(value)
        if role == "user" and turns and turns[-1] == {"role": "assistant", "content": ""}:
            turns = turns[:-1]  # a prompt that waits for its answer
        messages = turns or [{"role": role, "content": value}]
    elif isinstance(value, dict):
        messages = [_message(value, key)]
    elif isinstance(value, list):
        messages = [_message(item, key) for item in value]
    else:
        raise BadRow(f"`{key}` is missing")
    if not messages or not messages[-1]["content"].strip():
        raise EmptyRow(f"`{key}` is empty")
    return messages


def _message(item: Any, key: str) -> Message:
    """One message, in OpenAI's words (role, content) or ShareGPT's (from, value)."""
    role, content = (
        (item.get("role") or item.get("from"), item.get("content") or item.get("value")) if isinstance(item, dict) else (None, None)
    )
    if role not in ROLES:
        raise BadRow(f"`{key}` has a message without a known role")
    if content is not None and not isinstance(content, str):
        raise BadRow(f"`{key}` has a message whose content is not text")
    return {"role": ROLES[role], "content": content or ""}


def _transcript(text: str) -> list[Message]:
    """Human and Assistant turns of one string; empty where it is no transcript."""
    parts = TURN.split(text)
    if len(parts) < 3 or parts[0].strip():
        return []
    return [
        {"role": "user" if who == "Human" else "assistant", "content": said.strip()}
        for who, said in zip(parts[1::2], parts[2::2], strict=True)
    ]


def _shared(chosen: list[Message], rejected: list[Message]) -> int:
    """How many leading messages both have, the last one of each left out: that is the answer, even where they are equal."""
    count = 0
    for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
        if one != other:
            break
        count += 1
    return count
