"""The types of rows: as a file holds them, as converters make them, and as they are once tokenized. Types only, no code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

Row = dict[str, Any]
"""One row of any kind, whichever columns it has: raw, converted (below) or tokenized (`Tokenized...`).

Functions that handle rows of several methods take this type; a function for one kind names the kind in its docstring.
"""


class Message(TypedDict):
    """One turn of a conversation."""

    role: str  # system, user, assistant or tool
    content: str


class ConversationRow(TypedDict):
    """A conversation that ends with the assistant's turn (TRL's language modeling type)."""

    messages: list[Message]
    answer: NotRequired[list[str]]  # accepted strings of a right answer; kept by every kind of row


class PreferenceRow(TypedDict):
    """A prompt with a better and a worse answer (TRL's preference type)."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    margin: NotRequired[float]  # by how much `chosen` is better, for reward models
    answer: NotRequired[list[str]]


class UnpairedRow(TypedDict):
    """A prompt and one answer, labeled good or bad (TRL's unpaired preference type)."""

    prompt: list[Message]
    completion: list[Message]
    label: bool
    answer: NotRequired[list[str]]


class TextRow(TypedDict):
    """One document."""

    text: str


class TokenizedConversation(ConversationRow):
    """A conversation with token ids; `labels` is -100 wherever the assistant does not speak."""

    input_ids: Sequence[int]  # [T]
    labels: Sequence[int]  # [T]


class TokenizedPair(PreferenceRow):
    """A preference row with token ids; each answer ends with a stop token, unless it was truncated."""

    prompt_ids: Sequence[int]
    chosen_ids: Sequence[int]
    rejected_ids: Sequence[int]


class TokenizedLabeled(UnpairedRow):
    """A labeled answer with token ids."""

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]


class TokenizedText(TypedDict):
    """A block of whole or cut documents; it carries no other column."""

    input_ids: Sequence[int]  # [T], the documents one after the other
    seq_lengths: Sequence[int]  # tokens of each document
