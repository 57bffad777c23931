"""A mean and its 95% interval from one value per held-out row.

The rows are the sample. How much a mean varies with the seed of training is another question, which the
report answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict

Z = 1.959964  # the 97.5% quantile of the normal distribution


class ReportedMetric(TypedDict):
    """An entry of report.json."""

    value: float
    ci95: list[float] | None  # None for fewer than two rows
    n: int


@dataclass(frozen=True)
class Scores:
    """One value per held-out row.

    With weights (tokens, for example) their mean is sum(values) / sum(weights).
    """

    values: list[float]
    weights: list[float] | None = None
    share: bool = False  # each value is 0 or 1, and the mean a proportion

    @property
    def mean(self) -> float:
        """The mean; NaN without rows."""
        total = sum(self.weights) if self.weights else len(self.values)
        return sum(self.values) / total if total else math.nan

    def estimate(self) -> ReportedMetric:
        """The mean with its interval and the number of rows."""
        return {"value": self.mean, "ci95": self._interval(), "n": len(self.values)}

    def _interval(self) -> list[float] | None:
        count = len(self.values)
        if count < 2:
            return None
        # A tie of two rewards scores 0.5 and makes the mean no proportion.
        if self.share and set(self.values) <= {0.0, 1.0}:
            return wilson(sum(self.values), count)
        weights = self.weights or [1.0] * count
        mean, mean_weight = self.mean, sum(weights) / count
        residuals = sum(
            (value - mean * weight) ** 2 for value, weight in zip(self.values, weights, strict=True)
        )
        # The delta method for a ratio of sums; the usual standard error where all weights are 1.
        half_width = Z * math.sqrt(residuals / (count * (count - 1))) / mean_weight
        return [mean - half_width, mean + half_width]


@dataclass(frozen=True)
class Measured:
    """A model's scores by metric, and its answers to the held-out prompts."""

    scores: dict[str, Scores]
    answers: list[str]


def wilson(successes: float, count: int) -> list[float]:
    """Wilson's score interval of a proportion (1927): valid near 0 and 1, where mean +- 2 sd is not."""
    share, spread = successes / count, Z * Z / count
    center = (share + spread / 2) / (1 + spread)
    half_width = Z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return [max(0.0, center - half_width), min(1.0, center + half_width)]


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
