"""One message, under OpenAI's keys (role, content) or ShareGPT's (from, value), with all that it says."""

from __future__ import annotations

from typing import Any

from ..reasons import BadRow, Reason
from ..rows import Message
from .strings import TEMPLATE_STARTS, is_templated, is_written, parse_messages
from .tools import parse_calls, read_calls
from .values import as_truth, describe_type, is_given

ROLES = {
    "system": "system", "user": "user", "assistant": "assistant", "tool": "tool",
    "human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "model": "assistant", "ai": "assistant",
    "function_call": "assistant", "tool_call": "assistant",
    "observation": "tool", "function": "tool", "tool_response": "tool", "ipython": "tool",
}  # fmt: skip
# with what an empty text or a template begins: a bracket, or a character that str.isspace knows
WHITE_SPACE = [*range(9, 14), *range(28, 33), 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029]
ODD_STARTS = TEMPLATE_STARTS.union(map(chr, (*WHITE_SPACE, 0x202F, 0x205F, 0x3000)))
CALL_ROLES = ("function_call", "tool_call")  # ShareGPT's: the content is the call
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
WEIGHT_KEYS = ("weight", "train", "training", "trainable")
MEDIA_PARTS = ("image", "input_image", "video", "input_video", "audio", "input_audio")
CALL_KEYS = ("tool_calls", "function_call")
MESSAGE_KEYS = frozenset(
    {"role", "from", "content", "value", "tool_call_id", "name", *CALL_KEYS, *REASONING_KEYS, *WEIGHT_KEYS}
)


def read_list(items: list[Any], column: str) -> list[Message]:
    """The messages of a list. Raises BadRow, which names the column.

    Nearly all messages are a role and a text: those are read here, quickly.
    """
    messages: list[Any] = []
    for item in items:
        if type(item) is dict and len(item) == 2:
            role, content = item.get("role"), item.get("content")
            is_known = role == "user" or role == "assistant" or role == "system"
            if is_known and type(content) is str and content and content[0] not in ODD_STARTS:
                messages.append({"role": role, "content": content})
                continue
        messages.append(read_message(item, column))
    return messages


def read_message(item: Any, column: str) -> Message:
    """One message of a column. Raises BadRow, which names the column."""
    if isinstance(item, str) and is_written(item):
        item = next(iter(parse_messages(item) or [item]))
    if not isinstance(item, dict):
        raise BadRow(Reason.not_messages, f"`{column}` holds {describe_type(item)} where a message belongs")
    message = _read_fields(item, column)
    content = message["content"]
    if not content or content.isspace():
        if message["role"] == "user":
            raise BadRow(Reason.empty, f"`{column}` has a user's turn without text")
        if message["role"] == "assistant" and "tool_calls" not in message:
            message["train"] = False  # an empty turn is no answer to learn
    elif is_templated(content):
        raise templated(column)
    return message


def templated(column: str) -> BadRow:
    """That a column's text has been through a chat template."""
    return BadRow(
        Reason.templated,
        f"`{column}` holds text to which a chat template was applied already: give the messages themselves",
    )


def _read_fields(item: dict[Any, Any], column: str) -> Message:
    word = _read_role(item, column)
    message: Any = {"role": ROLES[word], "content": ""}
    if message["role"] == "assistant":
        message.update(_read_assistant(item, column))
    message["content"] = _read_content(item, column, message)
    if is_prefix(item.get("prefix"), message):
        message["prefix"] = item["prefix"]
    if word in CALL_ROLES and (calls := parse_calls(message["content"], column)):
        message["content"], message["tool_calls"] = "", calls
    for key in ("tool_call_id", "name"):
        if is_given(value := item.get(key)):
            if not isinstance(value, str):
                raise BadRow(
                    Reason.bad_content,
                    f"`{column}` has a message whose `{key}` is not text but {describe_type(value)}",
                )
            message[key] = value
    return message


def is_prefix(value: Any, message: Message) -> bool:
    """Whether a message's `prefix` is the beginning of its answer, which is context and not trained."""
    begins = isinstance(value, str) and bool(value) and message["content"].startswith(value)
    return begins and message["role"] == "assistant"


def _read_role(item: dict[Any, Any], column: str) -> str:
    """The row's own word for a role that is known, in lower case."""
    role = item.get("role")
    role = item.get("from") if role is None else role
    if role is None:
        if key := next((key for key in ("role", "from") if key in item), None):
            raise BadRow(Reason.unknown_role, f"`{column}` has a message whose `{key}` is null")
        keys = ", ".join(map(str, item)) or "no key"
        raise BadRow(Reason.unknown_role, f"`{column}` has a message without a role (it has {keys})")
    if not isinstance(role, str):
        raise BadRow(
            Reason.unknown_role,
            f"`{column}` has a message without a known role: it is not text but {describe_type(role)}",
        )
    word = role.strip().lower()
    if word not in ROLES:
        raise BadRow(
            Reason.unknown_role,
            f"`{column}` has a message without a known role: {role[:40]!r} is not one of {', '.join(ROLES)}",
        )
    return word


def _read_assistant(item: dict[Any, Any], column: str) -> dict[str, Any]:
    """What the assistant's turn may have besides its content: calls, thoughts, and whether it is trained."""
    fields: dict[str, Any] = {}
    for key in CALL_KEYS:
        if is_given(item.get(key)) and (calls := read_calls(item[key], column)):
            fields["tool_calls"] = calls
            break
    for key in REASONING_KEYS:
        if is_given(thought := item.get(key)):
            if not isinstance(thought, str):
                raise BadRow(
                    Reason.bad_content,
                    f"`{column}` has a message whose `{key}` is not text but {describe_type(thought)}",
                )
            fields["reasoning_content"] = thought
            break
    if not all(_is_trained(item, key, column) for key in WEIGHT_KEYS if item.get(key) is not None):
        fields["train"] = False
    return fields


def _is_trained(item: dict[Any, Any], key: str, column: str) -> bool:
    weight = as_truth(item[key])
    if weight is None:
        raise BadRow(
            Reason.bad_weight,
            f"`{column}` has a message whose `{key}` is {item[key]!r:.40}: give 0 or 1, true or false",
        )
    return weight


def _read_content(item: dict[Any, Any], column: str, message: Message) -> str:
    content = item.get("content")
    content = content if is_given(content) else item.get("value", content)
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_read_part(part, column) for part in content)
    if content is not None:
        raise BadRow(
            Reason.bad_content,
            f"`{column}` has a message whose content is not text but {describe_type(content)}",
        )
    given = [str(key) for key, value in item.items() if is_given(value)]
    has_key = "content" in item or "value" in item
    said_elsewhere = [key for key in given if key not in MESSAGE_KEYS]
    if message.get("tool_calls") or (message["role"] == "assistant" and has_key and not said_elsewhere):
        return ""
    keys = ", ".join(given) or "no key"
    raise BadRow(Reason.no_content, f"`{column}` has a message without `content` (it has {keys})")


def _read_part(part: Any, column: str) -> str:
    """The text of one of OpenAI's content parts."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else describe_type(part)
    text = part.get("text") if isinstance(part, dict) else None
    if kind in ("text", "input_text", "output_text") and isinstance(text, str):
        return text
    is_media = str(kind).startswith(MEDIA_PARTS)
    reason = Reason.media if is_media else Reason.bad_content
    raise BadRow(reason, f"`{column}` has a message with a part that is not text: {str(kind)[:40]}")
