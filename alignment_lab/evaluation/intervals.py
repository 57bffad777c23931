"""A mean and its 95% interval over prompts like the held-out ones, from one value per held-out row.

Prompts are the sample: rows of one prompt are one draw. How much a mean varies with the seed of training is
another question, which the report answers. docs/STATISTICS.md has the formulas and how often they are right.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypedDict

from ..runtime.cluster_means import influence, share_interval, sum_by_prompt
from ..runtime.distributions import exact_share_interval, t_quantile


class ReportedMetric(TypedDict):
    """An entry of report.json."""

    value: float
    ci95: list[float] | None  # None for fewer than two prompts, or where a mean's do not vary
    n: int  # rows
    prompts: int


@dataclass(frozen=True)
class Scores:
    """One value per held-out row.

    With weights (tokens, for example) their mean is sum(values) / sum(weights).
    """

    values: list[float]
    weights: list[float] | None = None
    share: bool = False  # each value is at least 0 and at most its weight, and the mean a proportion
    prompts: Sequence[Hashable] | None = None  # of each row; None: every row has its own

    @property
    def mean(self) -> float:
        """The mean; NaN without rows."""
        total = sum(self.weights) if self.weights else len(self.values)
        return sum(self.values) / total if total else math.nan

    @property
    def prompt_indices(self) -> list[int]:
        """The prompt of each row, counted from 0 in the order in which they come."""
        if self.prompts is None:
            return list(range(len(self.values)))
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(self.prompts))}
        return [places[prompt] for prompt in self.prompts]

    def estimate(self) -> ReportedMetric:
        """The mean with its interval, the number of rows, and that of prompts."""
        indices = self.prompt_indices
        count = max(indices, default=-1) + 1
        interval = self._interval(indices, count) if count > 1 else None
        return {"value": self.mean, "ci95": interval, "n": len(self.values), "prompts": count}

    def _interval(self, indices: list[int], count: int) -> list[float] | None:
        """Student's interval of a ratio of sums; of a share, that of as many independent draws."""
        rows = len(self.values)
        if not math.isfinite(self.mean):
            return None
        if self.share and count == rows and not self.weights and set(self.values) <= {0.0, 1.0}:
            return list(exact_share_interval(sum(self.values), rows))
        found = influence(*sum_by_prompt(indices, self.values, self.weights, count))
        half_width = t_quantile(found.degrees) * math.sqrt((found.errors**2).sum())
        if self.share:
            most = math.inf if self.weights else rows
            return list(share_interval(found.mean, half_width, count, most))
        return [found.mean - half_width, found.mean + half_width] if half_width > 0 else None


@dataclass(frozen=True)
class Measured:
    """A model's scores by metric, and its answers to the held-out prompts."""

    scores: dict[str, Scores]
    answers: list[str]


def before_after(
    before: dict[str, Scores], after: dict[str, Scores]
) -> dict[str, dict[str, ReportedMetric | None]]:
    """The metrics of report.json: every name with its estimate before and after, None where not measured."""
    return {
        name: {
            "before": before[name].estimate() if name in before else None,
            "after": after[name].estimate() if name in after else None,
        }
        for name in dict.fromkeys([*before, *after])
    }
