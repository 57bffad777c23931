"""The shapes in which people keep conversations, preferences, labelled answers and texts, brought to TRL's dataset types.

Out come `{"messages": [...]}` (conversation), `{"prompt": [...], "chosen": [...], "rejected": [...]}` (preference, with `margin` where
the row has one), `{"prompt": [...], "completion": [...], "label": bool}` (unpaired) or `{"text": str}`; each list holds
`{"role", "content"}`. A row is judged by itself: one odd first row decides nothing for the others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from ..config import Format
from ..runtime.errors import UserError

Row = dict[str, Any]
Message = dict[str, str]
ROLES = {
    "system": "system", "user": "user", "assistant": "assistant", "tool": "tool",
    "human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "function_call": "assistant", "observation": "tool", "function": "tool",
}  # fmt: skip
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")  # Anthropic HH keeps a whole transcript in one string
ANSWERS = ("completion", "output", "response")
LABELS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
PAIRS_TOO = "preference pairs do as well"
NEEDS = {
    Format.preference: "`chosen` and `rejected` (with `prompt`, or as whole conversations)",
    Format.conversation: f"`messages`, `conversations`, `prompt` and `completion`, or `instruction` and `output` ({PAIRS_TOO})",
    Format.unpaired: f"`label` with `prompt` and `completion`, or with `messages` ({PAIRS_TOO}: a good answer and a bad one)",
    Format.text: "`text`",
}


class DataError(UserError):
    """Rows that cannot be read or used."""


class BadRow(ValueError):
    """One row lacks what it needs. The text is the reason, the same for the same defect, so that reasons can be counted."""


class UninformativeRow(BadRow):
    """A row that is whole and teaches nothing; real data sets hold some, so it is left out and counted, never an error."""


def converter(format: Format, rows: list[Row], said: str) -> Callable[[Row], list[Row]]:
    """The function that makes of one row the rows of `format`, chosen by the columns of all. Raises DataError where none fits."""
    columns = {key for row in rows for key, value in row.items() if value is not None}
    for fits, convert in WAYS[format]:
        if fits(columns):
            return convert
    raise DataError(
        f"{said}: has the columns {', '.join(sorted(columns)) or '(none)'}; this method needs {NEEDS[format]}."
    )


def preference(row: Row) -> Row:
    """One preference row, with its margin where it has one."""
    return {**_pair(row), **_margin(row)}


def conversation(row: Row) -> Row:
    """One conversation that ends with the assistant's turn."""
    messages = _prompt(row)
    if not _whole(row) and (answer := _answer(row)):
        messages = messages + _messages(row, answer, "assistant")
    if not messages or messages[-1]["role"] != "assistant":
        raise BadRow("the conversation does not end with the assistant's turn")
    if all(message["role"] == "assistant" for message in messages):
        raise BadRow("the conversation has no turn that the assistant answers")
    return {"messages": messages, **_kept(row)}


def unpaired(row: Row) -> Row:
    """One answer with its label: good or not."""
    label = _label(row)
    if _whole(row):
        messages = conversation(row)["messages"]
        prompt, completion = messages[:-1], messages[-1:]
    else:
        prompt, completion = _prompt(row), _messages(row, _answer(row) or ANSWERS[0], "assistant")
    if not prompt or prompt[-1]["role"] == "assistant":
        raise BadRow("no prompt that the completion answers")
    if completion[0]["role"] in ("system", "user") or completion[-1]["role"] != "assistant":
        raise BadRow("the completion is not the assistant's")
    return {"prompt": prompt, "completion": completion, "label": label, **_kept(row)}


def halves(row: Row) -> list[Row]:
    """A preference row as two labelled answers to one prompt, the good one first."""
    pair = _pair(row)
    chosen, rejected = pair.pop("chosen"), pair.pop("rejected")
    return [{**pair, "completion": chosen, "label": True}, {**pair, "completion": rejected, "label": False}]


def text(row: Row) -> Row:
    """One document."""
    if row.get("text") is None:
        raise BadRow("`text` is missing")
    if not isinstance(row["text"], str):
        raise BadRow("`text` is not a string")
    if not row["text"].strip():
        raise UninformativeRow("`text` is empty")
    return {"text": row["text"]}


def _chosen_only(row: Row) -> list[Row]:
    """A preference row as the conversation that was preferred."""
    pair = _pair(row)
    return [{"messages": pair["prompt"] + pair["chosen"], **_kept(row)}]


def _pair(row: Row) -> Row:
    """Prompt and both answers; the prompt is the row's own, or what both answers begin with."""
    chosen, rejected = (_messages(row, key, "assistant") for key in ("chosen", "rejected"))
    prompt = _prompt(row)
    shared = _shared(chosen, rejected)
    if shared and (
        not prompt or chosen[0]["role"] in ("system", "user")
    ):  # the answers carry the conversation themselves
        prompt = (_system(row) if chosen[0]["role"] != "system" else []) + chosen[:shared]
        chosen, rejected = chosen[shared:], rejected[shared:]
    if not prompt or prompt[-1]["role"] == "assistant":
        raise BadRow("no prompt that `chosen` and `rejected` both answer")
    if chosen == rejected:
        raise UninformativeRow("`chosen` equals `rejected`")
    for key, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer or answer[-1]["role"] != "assistant":
            raise BadRow(f"`{key}` does not end with the assistant's turn")
        if answer[0]["role"] in ("system", "user"):
            raise BadRow(f"`{key}` repeats a prompt that the other answer does not have")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **_kept(row)}


def _margin(row: Row) -> Row:
    """By how much the chosen answer is better, for reward models; empty where nobody says."""
    margin = row.get("margin")
    if margin is None:
        return {}
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
        raise BadRow("`margin` is not a finite number")
    return {"margin": float(margin)}


def _label(row: Row) -> bool:
    label = row.get("label")
    if label is None:
        raise BadRow("`label` is missing")
    if isinstance(label, str):
        label = LABELS.get(label.strip().lower())
    if not isinstance(label, int | float) or label not in (0, 1):
        raise BadRow("`label` is neither true nor false")
    return bool(label)


def _whole(row: Row) -> bool:
    """Whether the row keeps prompt and answer in one list."""
    return bool(row.get("messages") or row.get("conversations"))


def _answer(row: Row) -> str | None:
    """The column that holds the answer to a prompt of its own."""
    return next((key for key in ANSWERS if row.get(key) is not None), None)


def _kept(row: Row) -> Row:
    """What a row may carry besides its text: the strings that a right answer holds."""
    return {"answer": row["answer"]} if isinstance(row.get("answer"), list) else {}


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
        raise UninformativeRow(f"`{key}` is empty")
    return messages


def _message(item: Any, key: str) -> Message:
    """One message, in OpenAI's words (role, content) or ShareGPT's (from, value)."""
    role, content = (
        (item.get("role") or item.get("from"), item.get("content") or item.get("value"))
        if isinstance(item, dict)
        else (None, None)
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


def _has_pairs(columns: set[str]) -> bool:
    return {"chosen", "rejected"} <= columns


def _has_answers(columns: set[str]) -> bool:
    return bool(
        columns & {"messages", "conversations"}
        or (columns & {"prompt", "question", "instruction"} and columns & set(ANSWERS))
    )


WAYS: dict[
    Format, list[tuple[Callable[[set[str]], bool], Callable[[Row], list[Row]]]]
] = {  # the first that the columns allow
    Format.preference: [(_has_pairs, lambda row: [preference(row)])],
    Format.conversation: [(_has_pairs, _chosen_only), (_has_answers, lambda row: [conversation(row)])],
    Format.unpaired: [
        (_has_pairs, halves),
        (lambda columns: "label" in columns and _has_answers(columns), lambda row: [unpaired(row)]),
    ],
    Format.text: [(lambda columns: "text" in columns, lambda row: [text(row)])],
}
