"""How many words and sentences a text has: counted in one way by evaluation and by the report."""

from __future__ import annotations

import re

_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")  # the stop in 3.5 or a.m. ends no sentence


def count_words(text: str) -> int:
    """The number of words, separated by white space."""
    return len(text.split())


def count_sentences(text: str) -> int:
    """The number of sentences by their ends; a text without one is a single sentence, an empty text none."""
    return len(_SENTENCE_END.findall(text)) or int(bool(text.strip()))
