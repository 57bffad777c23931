"""Student's t and the beta distribution, without SciPy.

The intervals of a run's held-out rows and those of a comparison need them.
"""

from __future__ import annotations

import math
from functools import lru_cache

LEVEL = 0.95
Z = 1.959963984540054  # the normal distribution has 95% within it
TINY = 1e-300


def two_sided_p(t: float, degrees: float) -> float:
    """The probability that Student's t lies at least as far from 0 as `t`."""
    return _incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t))


def t_quantile(degrees: float, level: float = LEVEL) -> float:
    """The t within which Student's distribution has `level` of its mass: 12.71 for one degree of freedom.

    Degrees are rounded to four significant digits, which moves it by less than one in a thousand.
    """
    return _t_quantile(float(f"{degrees:.4g}"), level)


@lru_cache(maxsize=8192)
def _t_quantile(degrees: float, level: float) -> float:
    """By Newton's method on logarithms, in which the tails are almost straight."""
    log_scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - math.log(degrees * math.pi) / 2
    t = Z
    for _ in range(100):
        p = two_sided_p(t, degrees)
        density = math.exp(log_scale - (degrees + 1) / 2 * math.log1p(t * t / degrees))
        step = p * math.log(p / (1 - level)) / (2 * density * t)
        t *= math.exp(min(step, 4.0))
        if abs(step) < 1e-10:
            break
    return t


@lru_cache(maxsize=8192)
def exact_share_interval(successes: float, count: float, level: float = LEVEL) -> tuple[float, float]:
    """The interval of Clopper and Pearson (1934) for `successes` of `count`, whole numbers or not.

    It covers the true share with at least `level`, however few rows there are and however near to 0 or 1 it
    is, and more where a share can take few values.
    """
    tail, failures = (1 - level) / 2, count - successes
    low = _beta_quantile(successes, failures + 1, tail) if successes > 0 else 0.0
    high = 1 - _beta_quantile(failures, successes + 1, tail) if failures > 0 else 1.0
    return low, high


def _beta_quantile(a: float, b: float, probability: float) -> float:
    """The x below which the beta distribution of a and b has `probability`, to eight digits.

    Newton's method from the quantile of a logit-normal distribution, and bisection where it leaves the
    bracket.
    """
    log_scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    deviations = math.copysign(Z, probability - 0.5)
    x = 1 / (1 + math.exp(min(700.0, math.log(b / a) - deviations * math.sqrt(1 / a + 1 / b))))
    low, high = 0.0, 1.0
    for _ in range(200):
        error = _incomplete_beta(a, b, x) - probability
        low, high = (x, high) if error < 0 else (low, x)
        density = math.exp(log_scale + (a - 1) * math.log(x) + (b - 1) * math.log1p(-x))
        step = error / (density or TINY)
        inside = low < x - step < high
        previous, x = x, x - step if inside else (low + high) / 2
        if abs(x - previous) <= 1e-9 * x:
            break
    return x


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
