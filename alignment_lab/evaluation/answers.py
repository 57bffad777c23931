"""Scores of generated answers: their length, and whether they hold the right fact where the data names it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..config.metrics import metric
from ..data import prompt_messages
from ..data.embedded.build import mentions
from ..runtime.text_counts import count_sentences, count_words
from .intervals import Scores
from .prompts import prompt_digest

if TYPE_CHECKING:
    from ..data.rows import Row


def is_correct(answer: str, accepted: list[str] | None) -> bool | None:
    """Whether the answer contains an accepted string as whole words, in upper or lower case.

    None where the data accepts nothing in particular.
    """
    return mentions(answer, accepted) if accepted else None


def score_answers(answers: Sequence[str], rows: Sequence[Row]) -> dict[str, Scores]:
    """One value per answer: its words, whether it is one sentence, and whether it is correct where known."""
    correct = [is_correct(answer, row.get("answer")) for answer, row in zip(answers, rows, strict=True)]
    prompts = [prompt_digest(row) for row in rows]
    values: dict[str, list[float | None]] = {
        "answers/words": [float(count_words(answer)) for answer in answers],
        "answers/one_sentence": [float(count_sentences(answer) == 1) for answer in answers],
        "answers/correct": [None if known is None else float(known) for known in correct],
    }
    scores = {}
    for name, all_values in values.items():
        known = [
            (value, prompt) for value, prompt in zip(all_values, prompts, strict=True) if value is not None
        ]
        if known:
            numbers, asked = map(list, zip(*known, strict=True))
            scores[name] = Scores(numbers, share=metric(name).is_share, prompts=asked)
    return scores


def sample_rows(rows: Sequence[Row], before: Sequence[str], after: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of samples.jsonl: a held-out prompt, the data's answer, and the model's before and after."""
    return [
        {
            "prompt": prompt_messages(row),
            **{key: row[key] for key in ("tools", "chat_template_kwargs") if row.get(key)},
            "expected": _expected_answer(row),
            "before": answer_before,
            "after": answer_after,
            "before_correct": is_correct(answer_before, row.get("answer")),
            "after_correct": is_correct(answer_after, row.get("answer")),
        }
        for row, answer_before, answer_after in zip(rows, before, after, strict=False)
    ]


def _expected_answer(row: Row) -> str:
    """The data's own answer; an empty string where the data labels it a bad one."""
    if "completion" in row:
        return str(row["completion"][-1]["content"]) if row["label"] else ""
    return str((row["chosen"] if "chosen" in row else row["messages"])[-1]["content"])
