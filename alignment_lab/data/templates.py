"""Where the chat template is applied: messages become text here and nowhere else.

A template may refuse a row, as its author wrote it or by failing on it: that is a BadRow, in the template's
words. A prompt that ends with a message of the assistant is open: the answer goes on in that message.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .encoding import encode_rendered, special_token_pattern
from .prompts import row_prompt
from .reasons import BadRow, DataError, Reason
from .rows import Message, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = [Message(role="user", content="Is it so?"), Message(role="assistant", content="Yes, it is.")]
MAX_WORDS = 200  # characters of a template's own words that are repeated


@dataclass(frozen=True, slots=True)
class Chat:
    """What a chat template is given, and where its text ends: with a prompt, or with an answer."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    kwargs: dict[str, Any] | None = None
    is_prompt: bool = False  # the text ends where an answer begins
    is_open: bool = False  # the answer goes on in the last message

    @classmethod
    def of(cls, row: Row, messages: list[Message], *, is_prompt: bool = False, is_open: bool = False) -> Chat:
        """Messages of a row, with what it says beside them."""
        return cls(
            messages, row.get("tools") or None, row.get("chat_template_kwargs") or None, is_prompt, is_open
        )


def join_open_turn(prompt: list[Message], answer: list[Message]) -> list[Message]:
    """The whole conversation, of an answer that goes on in the message that its prompt ends with."""
    content = prompt[-1]["content"] + answer[0]["content"]
    return [*prompt[:-1], {**prompt[-1], **answer[0], "content": content}, *answer[1:]]


def render(tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat]) -> list[str | BadRow]:
    """The template's text of each chat, or why it refuses it.

    Chats with the same tools and arguments are rendered together, and one by one only where that fails.
    """
    groups: dict[str, list[int]] = {}
    for index, chat in enumerate(chats):
        settings = json.dumps([chat.tools, chat.kwargs], default=str) if chat.tools or chat.kwargs else ""
        groups.setdefault(f"{chat.is_prompt}{chat.is_open}{settings}", []).append(index)
    texts: list[str | BadRow] = [""] * len(chats)
    for indices in groups.values():
        rendered = _render_alike(tokenizer, [chats[index] for index in indices])
        for index, text in zip(indices, rendered, strict=True):
            texts[index] = text
    return texts


def encode_prompts(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[list[int]]:
    """The ids that the model is given before it generates each row's answer: those before it in training.

    Raises DataError where the template refuses a prompt.
    """
    mend = answer_mender(tokenizer)
    chats = []
    for row in rows:
        prompt, is_open = row_prompt(row)
        chats.append(Chat.of(row, mend(prompt), is_prompt=True, is_open=is_open))
    texts = []
    for text in render(tokenizer, chats):
        if isinstance(text, BadRow):
            raise DataError(f"model.chat_template: {text}; choose another template, or leave out the row.")
        texts.append(text)
    return encode_rendered(tokenizer, texts)


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """What a template writes after an answer: up to the stop token, which is trained, and then the rest."""

    stop: str  # the text of the token that generation stops at
    before: str  # what is between the answer and that token
    after: str  # what follows it at the end of a conversation: no model generates it
    header: str  # what a prompt ends with, from where the answer's turn begins


def stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end the assistant's turn: the one that the template closes it with, and EOS.

    Raises DataError for a template that ends the turn without a special token.
    """
    stop: int = tokenizer.convert_tokens_to_ids(turn_end(tokenizer).stop)
    eos = tokenizer.eos_token_id
    return list(dict.fromkeys(token for token in (stop, eos) if token is not None))


def turn_end(tokenizer: PreTrainedTokenizerBase) -> TurnEnd:
    """How the template ends the assistant's turn.

    Of the special tokens that stand after an answer wherever its turn is, EOS ends it if it is one of them,
    else the first: what stands there only at the end of a conversation is no part of the turn. Raises
    DataError for a template that ends the turn without a special token.
    """
    whole, followed, prompt = render(
        tokenizer, [Chat(PROBE), Chat([*PROBE, *PROBE]), Chat(PROBE[:1], is_prompt=True)]
    )
    if isinstance(whole, BadRow) or isinstance(prompt, BadRow):
        reason = whole if isinstance(whole, BadRow) else prompt
        raise DataError(f"model.chat_template: of a question with its answer, {reason}; choose another.")
    answer = PROBE[1]["content"]
    tail = whole.rpartition(answer)[2]
    shared = tail
    if isinstance(followed, str) and followed.count(answer) == 2:
        shared = shared_beginning(tail, followed.split(answer)[1])
    pattern = special_token_pattern(tokenizer)
    in_tail = list(pattern.finditer(tail))
    candidates = [match for match in in_tail if match.end() <= len(shared)] or in_tail
    if not candidates:
        raise DataError(
            "model.chat_template: it ends the assistant's turn with no special token, so the model would "
            "never learn to stop; let it close the turn with {{ eos_token }}."
        )
    end = next((match for match in candidates if match[0] == tokenizer.eos_token), candidates[0])
    (question,) = render(tokenizer, [Chat(PROBE[:1])])
    header = prompt[len(shared_beginning(prompt, question)) :] if isinstance(question, str) else ""
    return TurnEnd(end[0], tail[: end.start()], tail[end.end() :], header)


def answer_mender(
    tokenizer: PreTrainedTokenizerBase, end: TurnEnd | None = None
) -> Callable[[list[Message]], list[Message]]:
    """A function that takes stop tokens from the ends of the assistant's messages: templates write one."""
    stops = tuple({(end or turn_end(tokenizer)).stop, tokenizer.eos_token or ""} - {""})

    def mend(messages: list[Message]) -> list[Message]:
        if not any(ends_with_stop(message) for message in messages):
            return messages
        return [
            {**message, "content": without_stops(message["content"])} if ends_with_stop(message) else message
            for message in messages
        ]

    def ends_with_stop(message: Message) -> bool:
        return message["role"] == "assistant" and message["content"].rstrip().endswith(stops)

    def without_stops(content: str) -> str:
        while (stripped := content.rstrip()).endswith(stops):
            content = next(stripped.removesuffix(stop) for stop in stops if stripped.endswith(stop))
        return content

    return mend


def shared_beginning(left: str, right: str) -> str:
    """The characters that both texts begin with."""
    pairs = enumerate(zip(left, right, strict=False))
    return left[: next((index for index, (one, other) in pairs if one != other), min(len(left), len(right)))]


def _render_alike(tokenizer: PreTrainedTokenizerBase, chats: list[Chat]) -> list[str | BadRow]:
    """Render chats that differ in their messages alone."""
    errors = _template_errors()
    settings = _settings(tokenizer, chats[0])
    if isinstance(settings, BadRow):
        return [settings] * len(chats)
    try:
        texts: list[str | BadRow] = tokenizer.apply_chat_template(
            [chat.messages for chat in chats], tokenize=False, **settings
        )
        return texts
    except errors as error:
        _require_readable(error)
        if len(chats) > 1:
            return [text for chat in chats for text in _render_alike(tokenizer, [chat])]
        if (plain := _with_calls_as_text(chats[0])) is not None:
            return _render_alike(tokenizer, [plain])
        words = (str(error) or type(error).__name__).splitlines()[0][:MAX_WORDS]
        return [BadRow(Reason.template_refuses, f"the chat template refuses it: {words}")]


def _settings(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> dict[str, Any] | BadRow:
    """The arguments of `apply_chat_template`; a row's own are the template's, not the function's."""
    kwargs = chat.kwargs or {}
    reserved = kwargs.keys() & inspect.signature(tokenizer.apply_chat_template).parameters.keys()
    if reserved:
        detail = f"`chat_template_kwargs` sets {min(reserved)}, which is no argument of the template"
        return BadRow(Reason.bad_kwargs, detail)
    settings: dict[str, Any] = {"add_generation_prompt": chat.is_prompt and not chat.is_open}
    if chat.is_open:
        settings["continue_final_message"] = True
    return {**kwargs, **({"tools": chat.tools} if chat.tools else {}), **settings}


def _with_calls_as_text(chat: Chat) -> Chat | None:
    """The chat with the arguments of its calls as JSON, which some templates expect; None without calls."""

    def as_text(call: dict[str, Any]) -> dict[str, Any]:
        function = call.get("function", {})
        arguments = json.dumps(function.get("arguments"), ensure_ascii=False)
        return {**call, "function": {**function, "arguments": arguments}}

    calls = [call for message in chat.messages for call in message.get("tool_calls", ())]
    if not any(isinstance(call.get("function", {}).get("arguments"), dict) for call in calls):
        return None
    messages: list[Message] = [
        {**message, "tool_calls": [as_text(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in chat.messages
    ]
    return replace(chat, messages=messages)


def _template_errors() -> tuple[type[Exception], ...]:
    """What a template's code, or the function that renders it, raises on a row that it is not made for."""
    from jinja2 import TemplateError

    return (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


def _require_readable(error: Exception) -> None:
    from jinja2 import TemplateSyntaxError

    if isinstance(error, TemplateSyntaxError):
        raise DataError(
            f"model.chat_template: line {error.lineno} cannot be read: {error.message}; correct it."
        ) from None
