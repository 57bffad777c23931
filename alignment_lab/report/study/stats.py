"""Student's t, paired and unpaired differences, an exact sign test, and Holm's correction: plain numbers in, plain numbers out.

Refuses to know runs, seeds and metrics. What cannot be told is None: an interval of one value, a p-value where nothing varies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

LEVEL = 0.95
TINY = 1e-300
SAME = 1e-9  # a spread below this share of the values is rounding


@dataclass(frozen=True)
class Estimate:
    """A mean, or a difference of two, with its 95 % interval and the p-value against zero."""

    value: float
    ci95: tuple[float, float] | None
    p: float | None
    n: int  # values, or pairs; of two samples that are not paired, those of the smaller one


def mean(values: Sequence[float]) -> Estimate:
    """The mean with Student's interval. One value has none, nor have values that do not vary: there is no spread to judge by."""
    count = len(values)
    middle = math.fsum(values) / count
    if count < 2:
        return Estimate(middle, None, None, count)
    error = math.sqrt(_variance(values, middle) / count)
    scale = max(abs(value) for value in values)
    if error <= SAME * scale:
        return Estimate(middle, None, None if middle else 1.0, count)
    return _judged(middle, error, count - 1, count)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """ours - theirs, pair by pair: what both share (a seed, a row) drops out. The order of both is that of the pairs."""
    return mean([one - other for one, other in zip(ours, theirs, strict=True)])


def apart(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """ours - theirs of two samples without pairs, whose spreads may differ: Welch (1947). Two values of each at least, or no interval."""
    count = min(len(ours), len(theirs))
    middles = [math.fsum(values) / len(values) for values in (ours, theirs)]
    difference = middles[0] - middles[1]
    if count < 2:
        return Estimate(difference, None, None, count)
    parts = [
        _variance(values, middle) / len(values)
        for values, middle in zip((ours, theirs), middles, strict=True)
    ]
    error = math.sqrt(sum(parts))
    if error <= SAME * max(abs(value) for value in (*ours, *theirs)):
        return Estimate(difference, None, None if difference else 1.0, count)
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (ours, theirs), strict=True)
    )
    return _judged(difference, error, freedom, count)


def sign_test(differences: Sequence[float]) -> float:
    """The exact two-sided p-value that pluses and minuses are equally likely; zeros say nothing. McNemar's test where values are 0 or 1."""
    plus, minus = sum(one > 0 for one in differences), sum(one < 0 for one in differences)
    count = plus + minus
    tail = sum(math.comb(count, k) for k in range(min(plus, minus) + 1))
    return min(1.0, 2 * tail / 2**count)


def holm(values: Sequence[float], family: int | None = None) -> list[float]:
    """Holm (1979): p-values adjusted for all comparisons of a family, so that one of them is wrong in 5 % of families at most.

    The smallest is multiplied by the size of the family, the next by one less, and so on, never falling. `family` is that size where the
    values are some of it only: multipliers are then at least what they would be with all of it at hand.
    """
    size = max(family or 0, len(values))
    adjusted, floor = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        floor = max(floor, min(1.0, (size - rank) * values[place]))
        adjusted[place] = floor
    return adjusted


def two_sided(t: float, freedom: float) -> float:
    """The chance that Student's t lies at least so far from 0."""
    return _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


@lru_cache(maxsize=4096)
def quantile(freedom: float, level: float = LEVEL) -> float:
    """The t within which Student's distribution has `level` of its mass: 1.96 of the normal is 12.71 with one degree of freedom."""
    low, high = 0.0, 2.0
    while two_sided(high, freedom) > 1 - level:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided(middle, freedom) > 1 - level else (low, middle)
    return (low + high) / 2


def _variance(values: Sequence[float], middle: float) -> float:
    return math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1)


def _judged(middle: float, error: float, freedom: float, count: int) -> Estimate:
    half = quantile(round(freedom, 6)) * error
    return Estimate(middle, (middle - half, middle + half), two_sided(middle / error, freedom), count)


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function, by the continued fraction of DLMF 8.17.22, on the side where it converges fast."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = (
        math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
        / a
    )
    return front / _fraction(a, b, x)


def _fraction(a: float, b: float, x: float) -> float:
    """1 + d1 / (1 + d2 / (1 + ...)), by the modified method of Lentz."""
    value, above, below = 1.0, 1.0, 0.0
    for step in range(1, 1000):
        half = step // 2
        if step % 2:
            term = -(a + half) * (a + b + half) * x / ((a + 2 * half) * (a + 2 * half + 1))
        else:
            term = half * (b - half) * x / ((a + 2 * half - 1) * (a + 2 * half))
        above = 1 + term / above or TINY
        below = 1 / (1 + term * below or TINY)
        value *= above * below
        if abs(above * below - 1) < 1e-15:
            break
    return value
