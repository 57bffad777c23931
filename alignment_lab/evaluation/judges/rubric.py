"""The question that a judge is asked, as chat messages, and how its written verdict is read."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...data.rows import Message
from .verdicts import Pair

LETTERS = ("A", "B")
RUBRIC = """\
Compare two answers to the same request. The better answer does what was asked, states true facts, and is \
complete and clear. Length by itself is no merit, and neither is the order in which the answers are shown. \
An answer that is cut off, that answers something else, or that states something false is the worse one."""
ASK_LETTER = "Which answer is better? Reply with one letter: A or B."
ASK_VERDICT = "Which answer is better? Reply with one letter: A, B, or C if they are equally good."
LETTER = re.compile(r"(?<![A-Za-z'])[ABC](?![A-Za-z'])")
# a line that is a letter, or ends in one after such a word, or goes on that it is better
VERDICT_LINE = re.compile(
    r"(?:.*\b(?i:verdict|choice|answer|winner|option)\b\W*(?:(?i:is)\W+)?)?([ABC])\W*"
    r"(?:(?i:is (?:the )?better)\W*)?"
)
THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
PREFERENCE = {"A": 1.0, "B": 0.0, "C": 0.5}


def judge_messages(pair: Pair, rubric: str, *, may_tie: bool) -> list[Message]:
    """One message of a user: the rubric, the request with what was said before it, and both answers."""
    earlier, request = _request(pair.prompt)
    parts = [
        rubric.strip(),
        *([f"[The conversation before]\n{earlier}"] if earlier else []),
        f"[The request]\n{request}",
        f"[Answer A]\n{pair.answer.strip()}",
        f"[Answer B]\n{pair.other.strip()}",
        f"[End]\n{ASK_VERDICT if may_tie else ASK_LETTER}",
    ]
    return [{"role": "user", "content": "\n\n".join(parts)}]


def _request(prompt: Sequence[Message]) -> tuple[str, str]:
    """(what was said before the last message, as text; the last message)."""
    if not prompt:
        return "", ""
    *before, last = prompt
    return "\n".join(f"{each['role']}: {each['content'].strip()}" for each in before), last["content"].strip()


def read_verdict(text: str) -> float | None:
    """The probability that A is better, of a written verdict: 1, 0, or 0.5 for C; None where it names none.

    It stands in the first line or in the last: as a letter, or in words such as "The better answer is B." A
    line that names two letters says nothing.
    """
    lines = [line.strip("*_`'\"[]() \t") for line in THOUGHTS.sub("", text).splitlines() if line.strip()]
    for line in lines[-1:] + lines[:1]:
        found = VERDICT_LINE.fullmatch(line)
        if found and len(set(LETTER.findall(line))) == 1:
            return PREFERENCE[found[1]]
    return None
