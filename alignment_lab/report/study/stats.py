"""Student's mean, paired and unpaired differences, an exact sign test, and Holm's correction, without SciPy.

Knows nothing of runs, seeds and metrics. What is undefined is None: the interval of one value, a p-value
where nothing varies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...runtime.distributions import t_quantile, two_sided_p

RELATIVE_ROUNDING = 1e-9  # a spread below this share of the values is rounding


@dataclass(frozen=True)
class Estimate:
    """A mean, or a difference of two, with its 95% interval and the p-value against zero."""

    value: float
    ci95: tuple[float, float] | None
    p: float | None
    n: int  # values, or pairs; of two unpaired samples, the size of the smaller one
    prompts: int | None = None  # where prompts are a sample as well as seeds: crossed.py


def mean(values: Sequence[float]) -> Estimate:
    """The mean with Student's interval; no interval for one value, or for values that do not vary."""
    count = len(values)
    center = math.fsum(values) / count
    if count < 2:
        return Estimate(center, None, None, count)
    standard_error = math.sqrt(_variance(values, center) / count)
    if standard_error <= RELATIVE_ROUNDING * max(abs(value) for value in values):
        return Estimate(center, None, None if center else 1.0, count)
    return _t_estimate(center, standard_error, count - 1, count)


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """The mean of ours - theirs, pair by pair: what both share (a seed, a row) cancels."""
    return mean([mine - other for mine, other in zip(ours, theirs, strict=True)])


def welch_difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """The difference of the means of unpaired samples whose variances may differ: Welch (1947).

    No interval unless both have two values at least.
    """
    count = min(len(ours), len(theirs))
    centers = [math.fsum(values) / len(values) for values in (ours, theirs)]
    difference = centers[0] - centers[1]
    if count < 2:
        return Estimate(difference, None, None, count)
    variance, degrees = squared_error([ours, theirs])
    standard_error = math.sqrt(variance)
    if standard_error <= RELATIVE_ROUNDING * max(abs(value) for value in (*ours, *theirs)):
        return Estimate(difference, None, None if difference else 1.0, count)
    return _t_estimate(difference, standard_error, degrees, count)


def squared_error(samples: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The squared error of the sum or difference of unpaired samples' means, and its degrees of freedom.

    Degrees are Welch's (1947); all that the samples have where they have no spread. Raises ZeroDivisionError
    for a sample of one value.
    """
    errors = [_variance(each, math.fsum(each) / len(each)) / len(each) for each in samples]
    degrees = [len(each) - 1 for each in samples]
    total = sum(errors)
    if not total:
        return 0.0, float(sum(degrees))
    return total, total**2 / sum(error**2 / df for error, df in zip(errors, degrees, strict=True))


def sign_test(differences: Sequence[float]) -> float:
    """The exact two-sided p-value for pluses and minuses being equally likely; zeros are left out.

    McNemar's exact test where the compared values are 0 or 1.
    """
    plus = sum(difference > 0 for difference in differences)
    minus = sum(difference < 0 for difference in differences)
    count = plus + minus
    tail = sum(math.comb(count, k) for k in range(min(plus, minus) + 1))
    return min(1.0, 2 * tail / 2**count)


def holm(p_values: Sequence[float], family_size: int | None = None) -> list[float]:
    """Holm (1979): adjusted p-values, so that at most 5% of families have any false alarm.

    The smallest is multiplied by the size of the family, the next by one less, and so on, never falling.
    `family_size` is given where `p_values` are only some of the family: the multipliers are then at least
    what they would be with all of it.
    """
    size = max(family_size or 0, len(p_values))
    adjusted, floor = [0.0] * len(p_values), 0.0
    ascending = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, index in enumerate(ascending):
        floor = max(floor, min(1.0, (size - rank) * p_values[index]))
        adjusted[index] = floor
    return adjusted


def _variance(values: Sequence[float], center: float) -> float:
    return math.fsum((value - center) ** 2 for value in values) / (len(values) - 1)


def _t_estimate(center: float, standard_error: float, degrees: float, count: int) -> Estimate:
    half_width = t_quantile(round(degrees, 6)) * standard_error
    p = two_sided_p(center / standard_error, degrees)
    return Estimate(center, (center - half_width, center + half_width), p, count)
