"""What two rows may not share where one is trained on and the other held out: prompts, exchanges and turns.

Text is compared without case, white space and system prompts. Knows messages; refuses to know which side a
row is on.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from .rows import Message, Row

Key = bytes
MIN_CHARACTERS = 24  # of a turn that is told from a phrase: "Yes, please." joins no conversations
MAX_COMMON_ROWS = 10  # a turn in more rows than this, and in more than
MAX_COMMON_SHARE = 0.01  # of all rows, is a formula ("I am sorry, but I cannot help with that.")


def prompt_messages(row: Row) -> list[Message]:
    """The messages before the answer: the prompt, or all but the last turn; none for a text."""
    messages: list[Message] = row["prompt"] if "prompt" in row else row.get("messages", [])[:-1]
    return messages


def prompt_key(row: Row) -> Key:
    """A hash of the prompt, or of a text: the same whatever its case, blanks and system prompt."""
    if "text" in row:
        return _hash(_normalize(row["text"]))
    return _prefixes(_turns(prompt_messages(row)))[-1]


def preferred_messages(row: Row) -> list[Message]:
    """The conversation that every method can read from a row: the prompt with the chosen or the only answer.

    A rejected answer is left out, so that one file is split alike for methods with and without it.
    """
    messages: list[Message] | None = row.get("messages")
    return messages or [*row["prompt"], *(row["chosen"] if "chosen" in row else row["completion"])]


def shared_keys(rows: Sequence[Row]) -> list[set[Key]]:
    """For each row what no row on the other side may have: every prompt that it answers on its way, every
    exchange, and every longer turn that is not a formula.
    """
    found = [({prompt_key(row)}, set()) if "text" in row else _conversation_keys(row) for row in rows]
    counts = Counter(key for _, turns in found for key in turns)
    most = max(MAX_COMMON_ROWS, MAX_COMMON_SHARE * len(rows))
    return [prompts | {key for key in turns if counts[key] <= most} for prompts, turns in found]


def connected(keys: Sequence[Iterable[Key]]) -> list[int]:
    """The component of each row: rows that share a key, directly or through others, are in one.

    A component's number is the index of its first row.
    """
    parents = list(range(len(keys)))

    def find(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    first_with: dict[Key, int] = {}
    for index, row_keys in enumerate(keys):
        for key in row_keys:
            one, other = sorted((find(index), find(first_with.setdefault(key, index))))
            parents[other] = one
    return [find(index) for index in range(len(keys))]


@dataclass(frozen=True)
class _Turn:
    role: str
    text: Key  # hash of the normalized text
    length: int  # characters of the normalized text


def _conversation_keys(row: Row) -> tuple[set[Key], set[Key]]:
    """(hashes of prompts, hashes of turns and exchanges) of a conversation."""
    turns = _turns(preferred_messages(row))
    answered = [
        index for index in range(1, len(turns)) if turns[index].role == "assistant" != turns[index - 1].role
    ]
    prefixes = _prefixes(turns)
    prompts = {prefixes[index] for index in (*answered, len(_turns(prompt_messages(row))))}
    exchanges = {_hash(turns[index - 1].text + turns[index].text) for index in answered}
    return prompts, exchanges | {turn.text for turn in turns if turn.length >= MIN_CHARACTERS}


def _turns(messages: Iterable[Message]) -> list[_Turn]:
    """All turns but the system's."""
    spoken = [message for message in messages if message["role"] != "system"]
    texts = [_normalize(message["content"]) for message in spoken]
    return [
        _Turn(message["role"], _hash(text), len(text)) for message, text in zip(spoken, texts, strict=True)
    ]


def _prefixes(turns: Sequence[_Turn]) -> list[Key]:
    """Hashes of the first 0, 1, 2, ... turns."""
    return list(accumulate(turns, lambda key, turn: _hash(key + turn.role.encode() + turn.text), initial=b""))


def _normalize(text: str) -> bytes:
    """Without case and white space; letters that look alike are one."""
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return "".join(plain.casefold().split()).encode(errors="surrogatepass")


def _hash(data: bytes) -> Key:
    return hashlib.blake2b(data, digest_size=16).digest()
