"""What a person would check in generated answers: are they short, and do they hold the right fact where the data names it?"""

from __future__ import annotations

import re
from typing import Any

from ..data import prompt_of
from ..data.embedded.build import mentions
from .intervals import Scores


def is_correct(text: str, accepted: list[str] | None) -> bool | None:
    """Whether any accepted string stands in the text as whole words, whatever its case; None where the data names none."""
    return mentions(text, accepted) if accepted else None


def word_count(text: str) -> int:
    """How many words."""
    return len(text.split())


def sentence_count(text: str) -> int:
    """How many sentences, told by their ends: a stop in 3.5 or a.m. ends none."""
    return len(re.findall(r"[.!?]+(?=\s|$)", text)) or int(bool(text.strip()))


def score_answers(answers: list[str], rows: list[dict[str, Any]]) -> dict[str, Scores]:
    """One value per answer: words, whether it is one sentence, and whether it is correct where that is known."""
    marks = [is_correct(text, row.get("answer")) for text, row in zip(answers, rows, strict=True)]
    if not answers:
        return {}
    scores = {
        "answers/words": Scores([float(word_count(text)) for text in answers]),
        "answers/one_sentence": Scores([float(sentence_count(text) == 1) for text in answers], share=True),
    }
    known = [float(mark) for mark in marks if mark is not None]
    return {**scores, "answers/correct": Scores(known, share=True)} if known else scores


def sample_rows(rows: list[dict[str, Any]], before: list[str], after: list[str]) -> list[dict[str, Any]]:
    """samples.jsonl: each held-out prompt with the data's own answer and the model's, before and after."""
    return [
        {
            "prompt": prompt_of(row),
            "expected": _expected(row),
            "before": first,
            "after": second,
            "before_correct": is_correct(first, row.get("answer")),
            "after_correct": is_correct(second, row.get("answer")),
        }
        for row, first, second in zip(rows, before, after, strict=False)
    ]


def _expected(row: dict[str, Any]) -> str:
    """The data's own answer; none where it is labelled a bad one."""
    if "completion" in row:
        return row["completion"][-1]["content"] if row["label"] else ""
    return (row["chosen"] if "chosen" in row else row["messages"])[-1]["content"]
