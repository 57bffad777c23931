"""A number and its 95 % interval, from one value per held-out row. The rows are the sample: seeds are another source of noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

Z = 1.959964  # the normal's 97.5 % point


@dataclass(frozen=True)
class Scores:
    """One value per held-out row; with weights (tokens, say) their mean is sum(values) / sum(weights)."""

    values: list[float]
    weights: list[float] | None = None
    share: bool = False  # each value is 0 or 1, and the mean a proportion

    @property
    def mean(self) -> float:
        """The estimate itself; NaN of no rows."""
        weights = sum(self.weights) if self.weights else len(self.values)
        return sum(self.values) / weights if weights else math.nan

    def estimate(self) -> dict[str, Any]:
        """{"value", "ci95": [low, high] or None of fewer than two rows, "n"}."""
        return {"value": self.mean, "ci95": self._interval(), "n": len(self.values)}

    def _interval(self) -> list[float] | None:
        count = len(self.values)
        if count < 2:
            return None
        if self.share and set(self.values) <= {0.0, 1.0}:  # a tie of two rewards is 0.5, and no proportion
            return wilson(sum(self.values), count)
        weights = self.weights or [1.0] * count
        mean, weight = self.mean, sum(weights) / count
        residuals = sum((value - mean * size) ** 2 for value, size in zip(self.values, weights, strict=True))
        half = (
            Z * math.sqrt(residuals / (count * (count - 1))) / weight
        )  # the delta method; the plain mean's where weights are 1
        return [mean - half, mean + half]


@dataclass(frozen=True)
class Measured:
    """A model's scores by metric, and its answers to the held-out prompts."""

    scores: dict[str, Scores]
    answers: list[str]


def wilson(successes: float, count: int) -> list[float]:
    """Wilson's score interval of a share (1927): sound near 0 and 1, where mean +- 2 sd is not."""
    share, spread = successes / count, Z * Z / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return [max(0.0, middle - half), min(1.0, middle + half)]


def before_after(before: dict[str, Scores], after: dict[str, Scores]) -> dict[str, dict[str, Any]]:
    """report.json's metrics: every name with its estimate before and after, None where it was not measured."""
    names = list(dict.fromkeys([*before, *after]))
    return {
        name: {
            "before": before[name].estimate() if name in before else None,
            "after": after[name].estimate() if name in after else None,
        }
        for name in names
    }
