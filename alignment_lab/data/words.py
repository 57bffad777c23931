"""The words of a text without case and punctuation, and hashes of sequences of them, as arrays.

The convention of GPT-3's contamination study (Brown et al. 2020, appendix C): lower case, no punctuation,
split at white space. A Chinese or Japanese character is a word.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import zlib
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

from .overlap import preferred_messages
from .rows import Message, Row

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray

NO_WORD = re.compile(r"[\W_]+")
UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
MULTIPLIER = 0x9E3779B97F4A7C15  # odd, of 64 bits without pattern (the golden ratio's)


def split_words(text: str) -> list[bytes]:
    """The words of a text: lower case, no punctuation, UTF-8."""
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    plain = NO_WORD.sub(" ", plain.casefold().replace("'", "").replace("\u2019", ""))
    if not plain.isascii():
        plain = UNSPACED.sub(r" \g<0> ", plain)
    return plain.encode(errors="surrogatepass").split()


def spoken_texts(row: Row) -> list[str]:
    """The text of a row, or that of each turn that every method can read from it, but the system's."""
    return [row["text"]] if "text" in row else _texts(preferred_messages(row))


def all_texts(row: Row) -> list[str]:
    """The same, and the turns of a rejected answer."""
    return [*spoken_texts(row), *_texts(row.get("rejected") or [])]


def hash_turn(words: Sequence[bytes]) -> int:
    """64 bits of a whole turn."""
    return int.from_bytes(hashlib.blake2b(b" ".join(words), digest_size=8).digest(), "little")


def hash_sequences(turns: Sequence[Sequence[bytes]], length: int) -> tuple[Array, Array]:
    """Hashes of all sequences of `length` words, and the index in `turns` of the turn that each is from.

    Both [sequences], the hashes as uint64; no sequence spans two turns.
    """
    import numpy as np

    counts = np.fromiter(map(len, turns), np.int64, len(turns))
    total = int(counts.sum())
    ids = np.fromiter(map(zlib.crc32, chain.from_iterable(turns)), np.uint64, total)
    ids = (ids + np.uint64(1)) * np.uint64(MULTIPLIER)
    ids ^= ids >> np.uint64(29)
    starts = max(0, total - length + 1)
    hashes = np.zeros(starts, np.uint64)
    for offset in range(length):  # a polynomial in an odd number, modulo 2^64
        hashes = hashes * np.uint64(0xD6E8FEB86659FD93) + ids[offset : offset + starts]
    hashes ^= hashes >> np.uint64(32)
    owners = np.repeat(np.arange(len(turns)), counts)
    inside = owners[:starts] == owners[length - 1 :] if starts else np.zeros(0, bool)
    return hashes[inside], owners[:starts][inside]


def _texts(messages: Sequence[Message]) -> list[str]:
    return [message.get("content") or "" for message in messages if message["role"] != "system"]
