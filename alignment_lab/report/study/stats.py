"""Student's t, paired and unpaired differences, an exact sign test, and Holm's correction, without SciPy.

Knows nothing of runs, seeds and metrics. What is undefined is None: the interval of one value, a p-value
where nothing varies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

LEVEL = 0.95
TINY = 1e-300
RELATIVE_ROUNDING = 1e-9  # a spread below this share of the values is rounding


@dataclass(frozen=True)
class Estimate:
    """A mean, or a difference of two, with its 95% interval and the p-value against zero."""

    value: float
    ci95: tuple[float, float] | None
    p: float | None
    n: int  # values, or pairs; of two unpaired samples, the size of the smaller one


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
    squared_errors = [
        _variance(values, center) / len(values)
        for values, center in zip((ours, theirs), centers, strict=True)
    ]
    standard_error = math.sqrt(sum(squared_errors))
    if standard_error <= RELATIVE_ROUNDING * max(abs(value) for value in (*ours, *theirs)):
        return Estimate(difference, None, None if difference else 1.0, count)
    degrees = sum(squared_errors) ** 2 / sum(
        squared_error**2 / (len(values) - 1)
        for squared_error, values in zip(squared_errors, (ours, theirs), strict=True)
    )
    return _t_estimate(difference, standard_error, degrees, count)


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


def two_sided_p(t: float, degrees: float) -> float:
    """The probability that Student's t lies at least as far from 0 as `t`."""
    return _incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t))


@lru_cache(maxsize=4096)
def t_quantile(degrees: float, level: float = LEVEL) -> float:
    """The t within which Student's distribution has `level` of its mass: 12.71 for one degree of freedom."""
    low, high = 0.0, 2.0
    while two_sided_p(high, degrees) > 1 - level:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_p(middle, degrees) > 1 - level else (low, middle)
    return (low + high) / 2


def _variance(values: Sequence[float], center: float) -> float:
    return math.fsum((value - center) ** 2 for value in values) / (len(values) - 1)


def _t_estimate(center: float, standard_error: float, degrees: float, count: int) -> Estimate:
    half_width = t_quantile(round(degrees, 6)) * standard_error
    p = two_sided_p(center / standard_error, degrees)
    return Estimate(center, (center - half_width, center + half_width), p, count)


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularized incomplete beta function, by the continued fraction of DLMF 8.17.22.

    Evaluated on the side where the fraction converges fast.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    log_density = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    front = math.exp(log_density) / a
    return front / _continued_fraction(a, b, x)


def _continued_fraction(a: float, b: float, x: float) -> float:
    """1 + d1 / (1 + d2 / (1 + ...)), by the modified Lentz method."""
    value, numerator, denominator = 1.0, 1.0, 0.0
    for step in range(1, 1000):
        half = step // 2
        if step % 2:
            term = -(a + half) * (a + b + half) * x / ((a + 2 * half) * (a + 2 * half + 1))
        else:
            term = half * (b - half) * x / ((a + 2 * half - 1) * (a + 2 * half))
        numerator = 1 + term / numerator or TINY
        denominator = 1 / (1 + term * denominator or TINY)
        value *= numerator * denominator
        if abs(numerator * denominator - 1) < 1e-15:
            break
    return value
