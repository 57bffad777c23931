"""Rows of one answer: conversations, labeled answers, prompts without an answer, texts."""

from __future__ import annotations

from ..reasons import BadRow, Reason
from ..rows import Message, Row
from .columns import (
    ANSWER_COLUMNS,
    PROMPT_COLUMNS,
    answer_column,
    answer_prompt,
    as_context,
    check_answer,
    conversation_column,
    is_empty,
    prompt_column,
    read_conversation,
    read_extras,
    read_messages,
    read_prompt,
)
from .strings import is_written
from .values import describe_type, read_label


def to_conversation(row: Row) -> Row:
    """A conversation that ends with the assistant's turn."""
    prompt, answer = _read_answered(row, context=True)
    messages = answer_prompt(prompt, answer) if answer else prompt
    if not messages or messages[-1]["role"] != "assistant":
        raise BadRow(Reason.not_an_answer, "the conversation does not end with the assistant's turn")
    if messages[0]["role"] == "assistant" and all(message["role"] == "assistant" for message in messages):
        raise BadRow(Reason.no_prompt, "the conversation has no turn that the assistant answers")
    if "train" in messages[-1] and not any(_is_target(message) for message in messages[1:]):
        raise BadRow(Reason.untrained, "no answer of the conversation is trained")
    return {"messages": messages, **read_extras(row)}


def to_unpaired(row: Row) -> Row:
    """A prompt and one answer, labeled good or bad."""
    label = read_label(row)
    prompt, completion = _read_answered(row, context=False)
    if not completion:
        prompt, completion = prompt[:-1], prompt[-1:]
    check_answer(prompt, completion, f"`{answer_column(row) or conversation_column(row)}`")
    return {"prompt": prompt, "completion": completion, "label": label, **read_extras(row)}


def to_prompt(row: Row) -> Row:
    """A prompt by itself: a column of its own, or a conversation without its last answer."""
    if column := conversation_column(row):
        prompt = read_conversation(row, column)
        if prompt[-1]["role"] == "assistant":
            prompt = prompt[:-1]
    else:
        column = prompt_column(row)
        prompt = read_prompt(row, column) if column else []
    if all(message["role"] in ("assistant", "system") for message in prompt):
        raise BadRow(Reason.no_prompt, "no prompt that can be answered")
    return {"prompt": prompt, **read_extras(row)}


def to_text(row: Row) -> Row:
    """One document."""
    text = row.get("text")
    if text is None:
        raise BadRow(Reason.missing_column, "`text` is missing")
    if not isinstance(text, str):
        raise BadRow(Reason.not_text, f"`text` is not text but {describe_type(text)}")
    if not text or text.isspace():
        raise is_empty("text")
    return {"text": text}


def _is_target(message: Message) -> bool:
    return message["role"] == "assistant" and message.get("train", True)


def _read_answered(row: Row, *, context: bool) -> tuple[list[Message], list[Message]]:
    """(prompt, answer); (the whole conversation, []) where one column holds both.

    `context`: turns of the assistant in the prompt are marked as not trained.
    """
    column = conversation_column(row)
    if column:
        messages = read_conversation(row, column)
        if messages[-1]["role"] == "assistant" or (answer := answer_column(row)) is None:
            return messages, []
        answers = read_messages(row, answer, "assistant")
        return as_context(messages) if context else messages, answers
    answer = answer_column(row)
    if answer is None:
        raise BadRow(
            Reason.missing_column,
            f"no answer: none of {', '.join(f'`{column}`' for column in ANSWER_COLUMNS[:3])} is there",
        )
    column = prompt_column(row)
    if column is None:
        blank = next((column for column in PROMPT_COLUMNS if row.get(column) is not None), None)
        raise is_empty(blank) if blank else BadRow(Reason.no_prompt, f"no prompt that `{answer}` answers")
    prompt = read_prompt(row, column, context=context)
    # a string that lists messages is an answer like any other to a prompt that is plain text
    written = not isinstance(row[column], str) or is_written(row[column])
    completion = read_messages(row, answer, "assistant", written=written)
    check_answer(prompt, completion, f"`{answer}`")
    return prompt, completion
