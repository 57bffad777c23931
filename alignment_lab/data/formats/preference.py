"""Pairs: a prompt with a chosen and a rejected answer; and what else can be made of them.

The answers stand in `chosen` and `rejected`, or are told from scores and votes (see `compared`).
"""

from __future__ import annotations

from typing import Any

from ..reasons import BadRow, Reason
from ..rows import Message, Row
from .columns import (
    answer_prompt,
    as_context,
    conversation_column,
    is_empty,
    prompt_column,
    read_conversation,
    read_extras,
    read_messages,
    read_prompt,
    with_system,
)
from .strings import TRANSCRIPT
from .values import is_given, read_number

ANSWERS = ("chosen", "rejected")


def to_preference(row: Row) -> Row:
    """A preference row, with its margin where it has one."""
    pair = read_pair(row)
    if is_given(margin := row.get("margin")):
        pair["margin"] = read_number(margin, "`margin`")
    return pair


def pair_to_unpaired(row: Row) -> list[Row]:
    """A preference row as two labeled answers to one prompt, the good one first."""
    pair = read_pair(row)
    chosen, rejected = pair.pop("chosen"), pair.pop("rejected")
    return [{**pair, "completion": chosen, "label": True}, {**pair, "completion": rejected, "label": False}]


def pair_to_conversation(row: Row) -> list[Row]:
    """A preference row as the conversation that was preferred, with its pair: the answer alone is trained."""
    pair = read_pair(row)
    return [{"messages": answer_prompt(as_context(pair["prompt"]), pair["chosen"]), **pair}]


def pair_to_prompt(row: Row) -> list[Row]:
    """A preference row without its answers."""
    pair = read_pair(row)
    return [{column: value for column, value in pair.items() if column not in ANSWERS}]


def read_pair(row: Row) -> Row:
    """Prompt and both answers. The prompt is the row's own, or the messages that both answers begin with."""
    column = prompt_column(row)
    transcript = isinstance(row.get("chosen"), str) and _may_be_transcripts(row, column)
    chosen = read_messages(row, "chosen", "assistant", transcript=transcript)
    rejected = read_messages(row, "rejected", "assistant", transcript=transcript)
    shared = _shared_length(chosen, rejected)
    if shared and chosen[0]["role"] in ("system", "user"):  # the answers hold the whole conversation
        prompt = with_system(row, chosen[:shared])
        chosen, rejected = chosen[shared:], rejected[shared:]
    else:
        prompt = read_prompt(row, column) if column else _read_conversation_prompt(row)
    if not prompt and any(row.get(column) == "" for column in ("prompt", "question", "instruction")):
        raise is_empty("prompt")
    if not prompt or all(message["role"] == "assistant" for message in prompt):
        raise BadRow(Reason.no_prompt, "no prompt that `chosen` and `rejected` both answer")
    if chosen == rejected:
        raise BadRow(Reason.equal_answers, "`chosen` equals `rejected`")
    for key, answer in zip(ANSWERS, (chosen, rejected), strict=True):
        if not answer or answer[-1]["role"] != "assistant":
            raise BadRow(Reason.not_an_answer, f"`{key}` does not end with the assistant's turn")
        if answer[0]["role"] in ("system", "user"):
            raise BadRow(Reason.no_prompt, f"`{key}` repeats a prompt that the other answer does not have")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **read_extras(row)}


def _may_be_transcripts(row: Row, column: str | None) -> bool:
    """Whether the text of the answers may hold the whole conversation: there is no prompt, or the answers
    repeat it.
    """
    if column is None:
        return conversation_column(row) is None
    prompt = row[column]
    if not isinstance(prompt, str):
        return False
    return all(_repeats(row.get(key), prompt) for key in ANSWERS)


def _repeats(answer: Any, prompt: str) -> bool:
    """Whether an answer is a transcript that begins with the prompt."""
    is_transcript = isinstance(answer, str) and TRANSCRIPT.match(answer) is not None
    return is_transcript and answer.strip().startswith(prompt.strip())


def _read_conversation_prompt(row: Row) -> list[Message]:
    """A conversation that the answers go on; empty where the answers carry it."""
    column = conversation_column(row)
    return read_conversation(row, column) if column else []


def _shared_length(chosen: list[Message], rejected: list[Message]) -> int:
    """The number of leading messages that both share and that come before an answer."""
    count = 0
    for left, right in zip(chosen[:-1], rejected[:-1], strict=False):
        if left != right:
            break
        count += 1
    while count and chosen[count - 1]["role"] == "assistant":  # two turns in a row are both the answer
        count -= 1
    return count
