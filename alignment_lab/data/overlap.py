"""What two rows may not share where one is trained on and the other held out: prompts, exchanges and turns.

Text is compared without case, white space and system prompts. Knows messages; refuses to know which side a
row is on. What it says of a row is a few numbers of 64 bits, so that millions of rows are compared as arrays.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from .rows import Message, Row

if TYPE_CHECKING:
    import numpy

Key = bytes
MIN_CHARACTERS = 24  # of a turn that is told from a phrase: "Yes, please." joins no conversations
MAX_COMMON_ROWS = 10  # a turn in more rows than this, and in more than
MAX_COMMON_SHARE = 0.01  # of all rows, is a formula ("I am sorry, but I cannot help with that.")


class RowKeys(NamedTuple):
    """What a row shares with others, as the first 64 bits of hashes."""

    prompt: int
    rank: int  # of the prompt: a hash of its hash, in whose order prompts are held out
    prompts: list[int]  # every prompt that it answers on its way; of a text, itself
    turns: list[int]  # every exchange, and every longer turn
    whole: int  # all turns: rows with the same one repeat each other


def row_keys(row: Row) -> RowKeys:
    """The keys of a conversation, a pair, a labeled answer or a text."""
    if "text" in row:
        key = prompt_key(row)
        return RowKeys(_number(key), _rank(key), [_number(key)], [], _number(key))
    turns = _turns(preferred_messages(row))
    answered = [
        index for index in range(1, len(turns)) if turns[index].role == "assistant" != turns[index - 1].role
    ]
    prefixes = _prefixes(turns)
    prompt = prefixes[sum(message["role"] != "system" for message in _asked(row))]
    prompts = {prompt, *(prefixes[index] for index in answered)}
    exchanges = {_hash(turns[index - 1].text + turns[index].text) for index in answered}
    shared = exchanges | {turn.text for turn in turns if turn.length >= MIN_CHARACTERS}
    return RowKeys(
        _number(prompt),
        _rank(prompt),
        sorted(map(_number, prompts)),
        sorted(map(_number, shared)),
        _number(prefixes[-1]),
    )


def _asked(row: Row) -> list[Message]:
    """The prompt, or all turns but the last."""
    messages: list[Message] = row["prompt"] if "prompt" in row else row["messages"][:-1]
    return messages


def prompt_key(row: Row) -> Key:
    """A hash of the prompt, or of a text: the same whatever its case, blanks and system prompt."""
    if "text" in row:
        return _hash(_normalize(row["text"]))
    return _prefixes(_turns(_asked(row)))[-1]


def preferred_messages(row: Row) -> list[Message]:
    """The conversation that every method can read from a row: the prompt with the chosen or the only answer.

    A rejected answer is left out, so that one file is split alike for methods with and without it.
    """
    messages: list[Message] | None = row.get("messages")
    return messages or [*row["prompt"], *(row["chosen"] if "chosen" in row else row["completion"])]


def without_formulas(turns: numpy.ndarray, rows: int) -> numpy.ndarray:
    """Which of the turns [N] of a number of rows are no formulas, [N] booleans; a row names a turn once."""
    import numpy

    _, inverse, counts = numpy.unique(turns, return_inverse=True, return_counts=True)
    return counts[inverse] <= max(MAX_COMMON_ROWS, MAX_COMMON_SHARE * rows)


def connected(owners: numpy.ndarray, keys: numpy.ndarray, rows: int) -> numpy.ndarray:
    """The component of each row, [rows]: rows that share a key, directly or through others, are in one.

    `owners` and `keys` [N]: row owners[i] has the key keys[i]. A component's number is the index of its first
    row. Each round hooks every tree of rows to the lowest one that it shares a key with, and flattens it; of
    the trees that are left to be joined, at most half remain.
    """
    import numpy

    labels = numpy.arange(rows)
    if not len(keys):
        return labels
    order = numpy.argsort(keys, kind="stable")
    owners, keys = owners[order], keys[order]
    is_first = numpy.concatenate([[True], keys[1:] != keys[:-1]])
    starts = numpy.flatnonzero(is_first)
    key_numbers = numpy.cumsum(is_first) - 1
    while True:
        lowest = numpy.minimum.reduceat(labels[owners], starts)
        hooked = labels.copy()
        numpy.minimum.at(hooked, labels[owners], lowest[key_numbers])
        while True:
            flatter = hooked[hooked]
            if numpy.array_equal(flatter, hooked):
                break
            hooked = flatter
        if numpy.array_equal(hooked, labels):
            return labels
        labels = hooked


class _Turn(NamedTuple):
    role: str
    text: Key  # hash of the normalized text
    length: int  # characters of the normalized text


def _turns(messages: Iterable[Message]) -> list[_Turn]:
    """All turns but the system's."""
    return list(_spoken_turns(messages))


def _spoken_turns(messages: Iterable[Message]) -> Iterator[_Turn]:
    for message in messages:
        if message["role"] != "system":
            text = _normalize(_said(message))
            yield _Turn(message["role"], _hash(text), len(text))


def _said(message: Message) -> str:
    """The content of a turn, and the tools that it calls."""
    content, calls = message.get("content") or "", message.get("tool_calls")
    return f"{content}{json.dumps(calls, sort_keys=True)}" if calls else content


def _prefixes(turns: Sequence[_Turn]) -> list[Key]:
    """Hashes of the first 0, 1, 2, ... turns."""
    return list(accumulate(turns, lambda key, turn: _hash(key + turn.role.encode() + turn.text), initial=b""))


def _normalize(text: str) -> bytes:
    """Without case and white space; letters that look alike are one."""
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return "".join(plain.casefold().split()).encode(errors="surrogatepass")


def _hash(data: bytes) -> Key:
    return hashlib.blake2b(data, digest_size=16).digest()


def _number(key: Key) -> int:
    return int.from_bytes(key[:8], "big")


def _rank(key: Key) -> int:
    return _number(hashlib.sha256(key).digest())
