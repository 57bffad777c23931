"""The scores of single held-out rows, summed by prompt, where they are those that the run reported.

A run's row_scores.json has them. Of an older run, samples.jsonl has the answers to count them from.
"""

from __future__ import annotations

import json
import math
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
    reported = value_of(record.after(metric))
    scores = _recorded(record, metric) or _counted(record, metric)
    if scores is None or not is_finite_number(reported):
        return None
    prompts, values, weights = scores
    total = math.fsum(weights) if weights else len(values)
    size = math.fsum(map(abs, values)) / total if total else math.nan
    if not abs((math.fsum(values) / total if total else math.nan) - reported) <= ROUNDING * size + 1e-12:
        return None
    names = sorted(set(prompts))
    places = {name: place for place, name in enumerate(names)}
    return PromptSums(
        tuple(names), *sum_by_prompt([places[name] for name in prompts], values, weights, len(names))
    )


Columns = tuple[Sequence[str], Sequence[float], Sequence[float] | None]  # prompts, values, weights


def _recorded(record: RunRecord, metric: str) -> Columns | None:
    """From row_scores.json."""
    digests, columns = record.row_scores.get("prompts"), record.row_scores.get("metrics")
    scores = columns.get(metric) if isinstance(columns, Mapping) else None
    if not isinstance(scores, Mapping) or not isinstance(digests, list):
        return None
    try:
        values, weights = list(map(float, scores["values"])), scores.get("weights")
        prompts = [digests[place] for place in scores["prompts"]]
        if weights is not None:
            weights = list(map(float, weights))
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    same_length = len(prompts) == len(values) == len(values if weights is None else weights)
    return (prompts, values, weights) if values and same_length else None


def _counted(record: RunRecord, metric: str) -> Columns | None:
    """From the answers in samples.jsonl."""
    score = ROW_SCORES.get(metric)
    rows = [row for row in record.samples if isinstance(row.get("after"), str)] if score else []
    known = [(prompt_key(row), value) for row in rows if score and (value := score(row)) is not None]
    if not known:
        return None
    return [prompt for prompt, _ in known], [float(value) for _, value in known], None
