"""The scores of single held-out rows, summed by prompt, where they are those that the run reported.

A run's row_scores.json has them. Of an older run, samples.jsonl has the answers to count them from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...runtime.cluster_means import sum_by_prompt
from ...runtime.text_counts import count_sentences, count_words
from .runs import LoggedRow, RunRecord
from .values import is_finite_number, value_of

if TYPE_CHECKING:
    import numpy as np

ROUNDING = 1e-6  # of the values' size: what the file's digits leave uncertain in a mean
ROW_SCORES: dict[str, Callable[[LoggedRow], float | None]] = {
    "answers/correct": lambda row: row.get("after_correct"),
    "answers/words": lambda row: count_words(row["after"]),
    "answers/one_sentence": lambda row: count_sentences(row["after"]) == 1,
}


@dataclass(frozen=True)
class PromptSums:
    """A metric after training by prompt: its mean is sum(values) / sum(weights)."""

    prompts: tuple[str, ...]  # in order
    values: np.ndarray  # [prompts] sums over the rows of a prompt
    weights: np.ndarray  # [prompts] rows, or what they weigh


def prompt_key(row: LoggedRow) -> str:
    """A prompt as text that is equal for equal prompts."""
    return json.dumps(row.get("prompt"), sort_keys=True, ensure_ascii=False)


def prompt_sums(record: RunRecord, metric: str) -> PromptSums | None:
    """A metric's scores by prompt.

    None unless their mean is the value that the run reported: only then are they the scores behind it.
    """
    import numpy as np

    reported = value_of(record.after(metric))
    columns = _recorded(record, metric) or _counted(record, metric)
    if columns is None or not is_finite_number(reported):
        return None
    try:
        values = np.array(columns.values, float)
        weights = np.ones(len(values)) if columns.weights is None else np.array(columns.weights, float)
        sums, weight_sums = sum_by_prompt(columns.places, values, weights, len(columns.prompts))
        order = np.array(sorted(range(len(columns.prompts)), key=columns.prompts.__getitem__))
    except (TypeError, ValueError):
        return None
    order = order[weight_sums[order] > 0]
    total = weights.sum()
    allowed = ROUNDING * np.abs(values).sum() + 1e-12 * total
    if not total > 0 or not abs(values.sum() - reported * total) <= allowed:
        return None
    names = tuple(map(columns.prompts.__getitem__, order.tolist()))
    return PromptSums(names, sums[order], weight_sums[order])


@dataclass(frozen=True)
class _Columns:
    """A value for each row; nothing is known of their types where a file gave them."""

    prompts: Sequence[str]
    places: Sequence[int]  # of each row's prompt among these
    values: Sequence[float]
    weights: Sequence[float] | None


def _recorded(record: RunRecord, metric: str) -> _Columns | None:
    """From row_scores.json."""
    prompts, metrics = record.row_scores.get("prompts"), record.row_scores.get("metrics")
    scores = metrics.get(metric) if isinstance(metrics, Mapping) else None
    if not isinstance(scores, Mapping) or not isinstance(prompts, list):
        return None
    places, values = (scores.get(name) for name in ("prompts", "values"))
    if not isinstance(places, list) or not isinstance(values, list):
        return None
    return _Columns(prompts, places, values, scores.get("weights")) if values else None


def _counted(record: RunRecord, metric: str) -> _Columns | None:
    """From the answers in samples.jsonl."""
    score = ROW_SCORES.get(metric)
    rows = [row for row in record.samples if isinstance(row.get("after"), str)] if score else []
    known = [(prompt_key(row), float(value)) for row in rows if score and (value := score(row)) is not None]
    prompts = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompt for prompt, _ in known))}
    if not known:
        return None
    return _Columns(
        list(prompts), [prompts[prompt] for prompt, _ in known], [value for _, value in known], None
    )
