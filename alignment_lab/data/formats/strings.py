"""Text that is more than the words of one speaker: a transcript, messages that were written as a string, a
chat template that was applied already.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
import warnings
from typing import Any

from ..rows import Message

# Anthropic HH keeps a whole transcript in one string
TURN_MARKER = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")
TRANSCRIPT = re.compile(r"\s*Human:")
# a list of messages, or one, in JSON, in Python or as numpy prints it
WRITTEN_MESSAGES = re.compile(r"""\s*(?:array\(\s*)?(?:\[\s*)?\{\s*['"]\w+['"]\s*:""")
MESSAGE_KEY = re.compile(r"""['"](?:role|from)['"]\s*:""")
# the header of a first turn, after a BOS or none
STRUCTURE_STARTS = frozenset("[{aH \n\t\r")  # of a transcript, or of messages written as a string
TEMPLATE_STARTS = frozenset("<[ \n\t")
TEMPLATE_HEADER = re.compile(
    r"""\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|startoftext\|>|<\|endoftext\|>|<BOS_TOKEN>|<｜begin▁of▁sentence｜>|\[gMASK]<sop>)?\s*
    (?:<\|im_start\|>\s*\w+\s*\n            # ChatML, Qwen
    | <\|(?:start_header_id|header_start)\|>\s*\w+\s*<\|  # Llama 3, Llama 4
    | <start_of_turn>\s*(?:user|model)\b    # Gemma
    | <\|turn>\s*(?:system|user|model)\b
    | \[INST].*\[/INST]                     # Llama 2, Mistral
    | \[SYSTEM_PROMPT]
    | <\|(?:system|user|assistant)\|>       # Zephyr, Phi-3, GLM
    | <｜(?:User|Assistant)｜>               # DeepSeek
    | <\|start\|>(?:system|developer|user|assistant)\b    # gpt-oss
    | <\|START_OF_TURN_TOKEN\|>             # Command R
    )""",
    re.VERBOSE | re.DOTALL,
)


def is_templated(text: str) -> bool:
    """Whether a text begins with the role header of a known chat template."""
    return text[:1] in TEMPLATE_STARTS and TEMPLATE_HEADER.match(text) is not None


def parse_transcript(text: str) -> list[Message]:
    """The Human and Assistant turns of one string; empty where the string is no transcript."""
    if not TRANSCRIPT.match(text):
        return []
    parts = TURN_MARKER.split(text)
    # a line that begins with a single "Human:" may be any text: Anthropic's begin with two line breaks
    if len(parts) < 3 or parts[0].strip() or (len(parts) == 3 and not text.startswith("\n\n")):
        return []
    return [
        {"role": "user" if speaker == "Human" else "assistant", "content": content.strip()}
        for speaker, content in zip(parts[1::2], parts[2::2], strict=True)
    ]


def is_written(text: str) -> bool:
    """Whether a text looks like messages that were written as a string."""
    return WRITTEN_MESSAGES.match(text) is not None and MESSAGE_KEY.search(text) is not None


def parse_messages(text: str) -> list[Any] | None:
    """The list of messages that a string holds as JSON, as Python's or as numpy's repr; else None.

    A message by itself is a list of one.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _parse_python(text.strip())
    if isinstance(value, dict):
        value = [value]
    is_list = isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
    return value if is_list else None


def _parse_python(text: str) -> Any:
    """The value of a Python literal, of numpy's array(...) or of what numpy prints; None for other text."""
    if wrapped := re.fullmatch(r"array\((.*?)(?:,\s*dtype=\w+)?\)", text, re.DOTALL):
        text = wrapped[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of "\d" in a text, which is no escape of Python
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            pass
        try:
            return ast.literal_eval(_separate_items(text))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, tokenize.TokenError):
            return None


def _separate_items(text: str) -> str:
    """numpy prints no comma between two items of a list."""
    tokens = [
        token
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type in (tokenize.OP, tokenize.STRING, tokenize.NUMBER, tokenize.NAME)
    ]
    words: list[str] = []
    for token in tokens:
        if token.string == "{" and words and words[-1] == "}":
            words.append(",")
        words.append(token.string)
    return " ".join(words)
