"""The types of rows and messages, and the columns that each kind of row has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

from .reasons import BadRow

IGNORE_INDEX = -100  # the label of a token that is not trained, as in torch and transformers

Unit = Literal["line", "row"]


class Message(TypedDict):
    """One turn of a conversation. All keys but the last two are for the chat template."""

    role: str  # system, user, assistant or tool
    content: str  # empty in a turn that only calls tools
    reasoning_content: NotRequired[str]  # what the assistant thought before it spoke
    # {"type": "function", "function": {"name": str, "arguments": dict}}, with an "id" where the row has one
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]  # of a tool's turn: which call it answers
    name: NotRequired[str]  # of a tool's turn: which tool; else which speaker
    train: NotRequired[Literal[False]]  # a turn of the assistant that is context and no target
    prefix: NotRequired[str]  # the beginning of `content` that is context: only what follows it is a target


Row = dict[str, Any]
"""One row, with the columns of its stage and its format.

As read: whatever columns the file has.

Converted by `formats` to one of TRL's dataset types:

    conversation  messages: list[Message]; prompt, chosen, rejected, where it comes from a pair
    preference    prompt, chosen, rejected: list[Message]; margin: float, where the row has one
    unpaired      prompt, completion: list[Message]; label: bool
    text          text: str

All but `text` may carry `answer: list[str]`, the accepted strings of a right answer; `tools: list[dict]`, the
functions that may be called, each {"type": "function", "function": {...}}; and `chat_template_kwargs: dict`,
arguments of the chat template. Answers to a prompt that ends with a message of the assistant go on in it.

Tokenized by `tokenization`: the converted columns and these, each a list of integers:

    conversation  input_ids, labels (IGNORE_INDEX where the assistant does not speak)
    preference    prompt_ids, chosen_ids, rejected_ids
    unpaired      prompt_ids, completion_ids
    text          input_ids, seq_lengths (of the documents in the block); no converted column
"""


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as a reader found it, before anything is known of its columns."""

    value: Any  # a mapping of columns; or null, a list, or what else stood in a row's place
    file: str  # as a user would name it: a path, or a Hub id with its split
    line: int  # of the file, from 1; where rows are no lines, as in an array or in Parquet, the row's number
    defect: BadRow | None = None  # why it could not be read; `value` is then the text as it stands
    unit: Unit = "line"

    @property
    def place(self) -> str:
        """`rows.jsonl, line 5`."""
        return f"{self.file}, {self.unit} {self.line}"
