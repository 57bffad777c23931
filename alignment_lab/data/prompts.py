"""What stands before an answer: the messages of a row that its answer follows, or goes on in."""

from __future__ import annotations

from .rows import Message, Row


def prompt_messages(row: Row) -> list[Message]:
    """What the model answers: the prompt, or what precedes the last answer of a conversation that is trained,
    with the beginning of that answer where it is given; none for a text.
    """
    return row_prompt(row)[0]


def row_prompt(row: Row) -> tuple[list[Message], bool]:
    """(`prompt_messages`, whether the answer goes on in the last of them)."""
    if "prompt" in row:
        return row["prompt"], is_open(row["prompt"])
    messages: list[Message] = row.get("messages", [])
    return prompt_of_answer(messages, next(iter(reversed(answer_indices(messages))), len(messages) - 1))


def is_open(prompt: list[Message]) -> bool:
    """Whether an answer goes on in the last message of this prompt."""
    return bool(prompt) and prompt[-1]["role"] == "assistant"


def answer_indices(messages: list[Message]) -> list[int]:
    """The turns of the assistant that are trained: none that opens the conversation or is context alone."""
    return [
        index
        for index, message in enumerate(messages)
        if index and message["role"] == "assistant" and message.get("train", True)
    ]


def prompt_of_answer(messages: list[Message], index: int) -> tuple[list[Message], bool]:
    """(what the model is given before it writes message `index`, whether it goes on in the last of it)."""
    before = messages[: max(index, 0)]
    prefix = messages[index].get("prefix") if messages else None
    return ([*before, {"role": "assistant", "content": prefix}], True) if prefix else (before, False)
