"""The scores of single held-out prompts, from samples.jsonl, where they are those that the run reported."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

from ...runtime.text_counts import count_sentences, count_words
from .runs import LoggedRow, RunRecord
from .values import is_finite_number, value_of

ROW_SCORES: dict[str, Callable[[LoggedRow], float | None]] = {
    "answers/correct": lambda row: row.get("after_correct"),
    "answers/words": lambda row: count_words(row["after"]),
    "answers/one_sentence": lambda row: count_sentences(row["after"]) == 1,
}


def prompt_key(row: LoggedRow) -> str:
    """A prompt as text that is equal for equal prompts."""
    return json.dumps(row.get("prompt"), sort_keys=True, ensure_ascii=False)


def row_scores(record: RunRecord, metric: str) -> dict[str, float]:
    """A metric after training by held-out prompt.

    Empty unless the mean of the scores is the value that the run reported, and no prompt occurs twice: only
    then are they the scores behind that value.
    """
    score, reported = ROW_SCORES.get(metric), value_of(record.after(metric))
    rows = [row for row in record.samples if isinstance(row.get("after"), str)]
    if score is None or not is_finite_number(reported) or not rows:
        return {}
    values = [(prompt_key(row), float(value)) for row in rows if (value := score(row)) is not None]
    mean = sum(value for _, value in values) / len(values) if values else math.nan
    scores = dict(values)
    same_mean = math.isclose(mean, reported, rel_tol=1e-9, abs_tol=1e-12)
    return scores if same_mean and len(scores) == len(values) else {}
