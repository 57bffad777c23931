"""The columns of a row that hold messages: the prompt, the answer, the whole conversation, and what goes with
them.
"""

from __future__ import annotations

from typing import Any

from ..reasons import BadRow, Reason
from ..rows import Message, Row
from .messages import read_list, read_message, templated
from .strings import STRUCTURE_STARTS, is_templated, is_written, parse_messages, parse_transcript
from .tools import TOOL_COLUMNS, read_tools
from .values import describe_type, is_given, is_json, parse_json, read_text

CONVERSATION_COLUMNS = ("messages", "conversations", "conversation")
PROMPT_COLUMNS = ("prompt", "question", "instruction", "input")
ANSWER_COLUMNS = ("completion", "output", "response", "answer")
SYSTEM_COLUMNS = ("system", "system_prompt")
MEDIA_COLUMNS = ("images", "image", "videos", "video", "audios", "audio")
EXTRA_COLUMNS = frozenset((*MEDIA_COLUMNS, *TOOL_COLUMNS, "chat_template_kwargs", "answer"))


def conversation_column(row: Row) -> str | None:
    """The column that holds prompt and answer in one list."""
    for column in CONVERSATION_COLUMNS:
        if is_given(row.get(column)):
            return column
    return None


def prompt_column(row: Row) -> str | None:
    """The column that holds what is answered, and no answer to it."""
    for column in PROMPT_COLUMNS:
        if is_given(row.get(column)):
            return column
    return None


def answer_column(row: Row) -> str | None:
    """The column that holds the answer where the prompt has a column of its own.

    `answer` is one where it is text: a list of texts says which answers are accepted.
    """
    for column in ANSWER_COLUMNS:
        value = row.get(column)
        if value is not None and (column != "answer" or isinstance(value, str)):
            return column
    return None


def read_messages(
    row: Row, column: str, role: str, *, written: bool = True, transcript: bool = False
) -> list[Message]:
    """The messages of a column: a list, one message, or text.

    Its text may be a list of messages that was `written` as a string, or a `transcript`. Other text is spoken
    by `role`; "" says that the column has to hold several turns.
    """
    value = row.get(column)
    if isinstance(value, str):
        messages = _read_string(value, column, role, written=written, transcript=transcript)
    elif isinstance(value, list):
        messages = _read_list(value, column)
    elif isinstance(value, dict):
        messages = read_list(_transpose(value), column)
    elif value is None:
        raise BadRow(Reason.missing_column, f"`{column}` is missing")
    else:
        raise BadRow(Reason.not_text, f"`{column}` is not text but {describe_type(value)}")
    if not messages:
        raise is_empty(column)
    last = messages[-1]
    if not last["content"] or last["content"].isspace():
        if last["role"] == "assistant" and role == "user" and len(messages) > 1:
            return messages[:-1]  # a prompt that ends where the answer would begin
        if not last.get("tool_calls"):
            raise is_empty(column)
    return messages


def is_empty(column: str) -> BadRow:
    """That a column has nothing in it."""
    return BadRow(Reason.empty, f"`{column}` is empty")


def read_conversation(row: Row, column: str) -> list[Message]:
    """The turns of the column that holds prompt and answer in one list."""
    return with_system(row, read_messages(row, column, "", transcript=True))


def read_prompt(row: Row, column: str, *, context: bool = False) -> list[Message]:
    """The messages before the answer; `column` is the `prompt_column`.

    `context`: turns of the assistant in the prompt's column are not trained; those of `history` are, as in
    LLaMA-Factory.
    """
    if column == "instruction":
        messages = _read_instruction(row)
    else:
        messages = read_messages(row, column, "user", transcript=column == "prompt")
        messages = as_context(messages) if context else messages
    return with_system(row, _read_history(row) + messages if "history" in row else messages)


def as_context(messages: list[Message]) -> list[Message]:
    """The same turns, the assistant's not trained."""
    if len(messages) == 1 and messages[0]["role"] != "assistant":
        return messages
    return [
        {**message, "train": False} if message["role"] == "assistant" else message for message in messages
    ]


def answer_prompt(prompt: list[Message], answer: list[Message]) -> list[Message]:
    """Prompt and answer as one conversation; the answer goes on in a turn that the prompt begins."""
    if prompt[-1]["role"] != "assistant" or answer[0]["role"] != "assistant":
        return prompt + answer
    begun = prompt[-1]["content"]
    joined: Message = {**prompt[-1], **answer[0], "content": begun + answer[0]["content"], "prefix": begun}
    if answer[0].get("train") is None:
        joined.pop("train", None)
    return [*prompt[:-1], joined, *answer[1:]]


def check_answer(prompt: list[Message], answer: list[Message], name: str) -> None:
    """Raise BadRow unless the answer is the assistant's, to a prompt. `name` is what the answer is called."""
    if answer[-1]["role"] != "assistant":
        raise BadRow(Reason.not_an_answer, f"{name} does not end with the assistant's turn")
    if answer[0]["role"] in ("system", "user"):
        raise BadRow(Reason.not_an_answer, f"{name} does not begin with the assistant's turn")
    if all(message["role"] == "assistant" for message in prompt):
        raise BadRow(Reason.no_prompt, f"no prompt that {name} answers")


def with_system(row: Row, messages: list[Message]) -> list[Message]:
    """The messages under one system turn: what the row's columns say, then what the messages begin with."""
    if row.keys().isdisjoint(SYSTEM_COLUMNS) and (len(messages) < 2 or messages[1]["role"] != "system"):
        return messages
    texts = [text for column in SYSTEM_COLUMNS if (text := read_text(row, column))]
    count = next(
        (index for index, message in enumerate(messages) if message["role"] != "system"), len(messages)
    )
    if not texts and count < 2:
        return messages
    texts += [message["content"] for message in messages[:count] if message["content"]]
    return [{"role": "system", "content": "\n\n".join(dict.fromkeys(texts))}, *messages[count:]]


def read_extras(row: Row) -> Row:
    """The columns that a converted row keeps beside its messages: answer, tools, chat_template_kwargs.

    Raises BadRow for a row with pictures, sound or video.
    """
    if row.keys().isdisjoint(EXTRA_COLUMNS):
        return {}
    for column in MEDIA_COLUMNS:
        if is_given(row.get(column)):
            raise BadRow(Reason.media, f"`{column}` is not empty: a model of text cannot read it")
    extras: Row = {}
    if has_accepted_answers(row):
        extras["answer"] = row["answer"]
    if tools := read_tools(row):
        extras["tools"] = tools
    if is_given(kwargs := parse_json(row.get("chat_template_kwargs"))):
        if (
            not isinstance(kwargs, dict)
            or not all(isinstance(key, str) for key in kwargs)
            or not is_json(kwargs)
        ):
            raise BadRow(Reason.bad_kwargs, "`chat_template_kwargs` is no mapping of names to values of JSON")
        if given := {key: value for key, value in kwargs.items() if value is not None}:
            extras["chat_template_kwargs"] = given
    return extras


def has_accepted_answers(row: Row) -> bool:
    """Whether `answer` is a list of texts, the accepted strings of a right answer."""
    answer = row.get("answer")
    return isinstance(answer, list) and bool(answer) and all(isinstance(text, str) for text in answer)


def _read_string(text: str, column: str, role: str, *, written: bool, transcript: bool) -> list[Message]:
    if text[:1] in STRUCTURE_STARTS:
        if written and is_written(text):
            items = parse_messages(text)
            if items is None:
                raise BadRow(
                    Reason.not_messages,
                    f"`{column}` is a string that holds a list of messages and cannot be read as JSON",
                )
            return _read_list(items, column)
        if transcript and (turns := parse_transcript(text)):
            return [
                {**turn, "train": False} if turn == {"role": "assistant", "content": ""} else turn
                for turn in turns
            ]
    if is_templated(text):
        raise templated(column)
    if not role and text.strip():
        raise BadRow(Reason.not_messages, f"`{column}` is text and not a list of messages")
    return [{"role": role or "user", "content": text}]


def _transpose(value: dict[Any, Any]) -> list[Any]:
    """One message; or all those of a table that has a list for each key: a Sequence of `datasets`."""
    columns = {key: items for key, items in value.items() if isinstance(items, list)}
    lengths = {len(items) for items in columns.values()}
    is_table = isinstance(value.get("role", value.get("from")), list) and len(lengths) == 1
    if not is_table or any(items is not None and key not in columns for key, items in value.items()):
        return [value]
    return [{key: items[index] for key, items in columns.items()} for index in range(lengths.pop())]


def _read_list(items: list[Any], column: str) -> list[Message]:
    if column == "conversation" and any(_is_exchange(item) for item in items):
        return [message for item in items for message in _read_exchange(item, column)]
    return read_list(items, column)


def _is_exchange(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("output"), str) and "role" not in item


def _read_exchange(item: Any, column: str) -> list[Message]:
    """A question with its answer, as Capybara has them: {"input": ..., "output": ...}."""
    if not _is_exchange(item) or not isinstance(item.get("input"), str):
        raise BadRow(Reason.not_messages, f"`{column}` has an item without the texts `input` and `output`")
    turns = (("user", item["input"]), ("assistant", item["output"]))
    return [read_message({"role": role, "content": text}, column) for role, text in turns]


def _read_instruction(row: Row) -> list[Message]:
    parts = [read_text(row, column) for column in ("instruction", "input")]
    content = "\n\n".join(part for part in parts if part)
    if is_templated(content):
        raise templated("instruction")
    if content.isspace():
        raise is_empty("instruction")
    return [{"role": "user", "content": content}]


def _read_history(row: Row) -> list[Message]:
    """Earlier turns: pairs of a question and its answer (alpaca), or messages."""
    history = row.get("history")
    if not is_given(history):
        return []
    items = parse_messages(history) if isinstance(history, str) and is_written(history) else history
    items = parse_json(items)
    if not isinstance(items, list):
        raise BadRow(Reason.not_messages, "`history` is no list of earlier questions and answers")
    messages: list[Message] = []
    for item in items:
        if isinstance(item, dict):
            messages.append(read_message(item, "history"))
        elif isinstance(item, list) and len(item) == 2 and all(isinstance(text, str) for text in item):
            for role, text in zip(("user", "assistant"), item, strict=True):
                messages.append(read_message({"role": role, "content": text}, "history"))
        else:
            raise BadRow(Reason.not_messages, "`history` has an item that is no question with its answer")
    return messages
