"""Win rates from pairwise preferences: standard errors, bootstrap intervals, and control for length.

A preference is in [0, 1]: 1 where the candidate's answer is better than the baseline's, 0.5 for a tie.
Refuses to know who said so. docs/STATISTICS.md has the formulas and what they were compared with.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..runtime.cluster_means import influence, sum_by_prompt
from ..runtime.distributions import LEVEL, exact_share_interval, t_quantile
from .intervals import Scores

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray

RESAMPLES = 1000
BLOCK_CELLS = 1_000_000  # of resamples times pairs that are computed at once: 8 MB an array
PENALTIES = tuple(10 ** (power * 8 / 9 - 4) for power in range(10))  # 1e-4 to 1e4, as alpaca_eval searches
WEAK = (
    0.01  # keeps the estimate finite where one side won everything; elsewhere it moves no digit that is shown
)
FOLDS = 5
STEPS = 50  # of Newton's method, which takes 4 to 10
SWEEPS = 40  # over the coordinates of one step


@dataclass(frozen=True)
class WinRate:
    """A share of comparisons won, in [0, 1]."""

    value: float
    standard_error: float  # over prompts; NaN for fewer than two
    ci95: tuple[float, float] | None  # None for fewer than two prompts


@dataclass(frozen=True)
class LengthControlled(WinRate):
    """The win rate of answers as long as the baseline's."""

    slope: (
        float  # log-odds that a candidate's answer gains with tanh of the standardized difference in length
    )
    penalty: float  # of the sum of the coefficients' absolute values


@dataclass(frozen=True)
class Preferences:
    """What was said of pairs of answers. Pairs of one prompt are one draw."""

    values: Sequence[float]  # [pairs]
    candidate_lengths: Sequence[int]  # characters, [pairs]
    baseline_lengths: Sequence[int]
    prompts: Sequence[Hashable]  # of each pair

    @property
    def prompt_indices(self) -> list[int]:
        """The prompt of each pair, counted from 0."""
        return Scores(list(self.values), prompts=self.prompts).prompt_indices

    def swapped(self) -> Preferences:
        """The same seen from the baseline's side."""
        mirrored = [1 - value for value in self.values]
        return Preferences(mirrored, self.baseline_lengths, self.candidate_lengths, self.prompts)


def both_orders(shown_first: Sequence[float], shown_second: Sequence[float]) -> list[float]:
    """The preference for the candidate, of the probabilities that its answer is better where it was shown
    first, and where it was shown second: their mean, so that a liking for a place cancels.
    """
    return [(first + second) / 2 for first, second in zip(shown_first, shown_second, strict=True)]


def win_rate(preferences: Preferences, *, resamples: int = RESAMPLES, seed: int = 0) -> WinRate:
    """The mean preference. Without `resamples` there is no interval.

    Where all pairs say the same, which a bootstrap takes for certain, the interval is the exact one of
    Clopper and Pearson for as many draws as there are prompts.
    """
    import numpy as np

    values = np.asarray(preferences.values, dtype=float)
    mean = float(values.mean()) if len(values) else math.nan
    indices = preferences.prompt_indices
    count = max(indices, default=-1) + 1
    if count < 2:
        return WinRate(mean, math.nan, None)
    sums = sum_by_prompt(indices, values, None, count)
    error = math.sqrt((influence(*sums).errors ** 2).sum())
    if error == 0:
        return WinRate(mean, error, exact_share_interval(mean * count, count))
    draws = [counts @ sums[0] / (counts @ sums[1]) for counts in _resampled(count, count, resamples, seed)]
    return WinRate(mean, error, _percentiles(np.concatenate(draws), count) if draws else None)


def length_controlled(
    preferences: Preferences, *, cross_validated: bool = False, resamples: int = RESAMPLES, seed: int = 0
) -> LengthControlled:
    """The win rate at equal lengths: AlpacaEval 2's regression without its difficulties of prompts
    (Dubois et al. 2024, arXiv:2404.04475).

    logit P(candidate is better) = quality + slope * tanh(difference of lengths / its standard deviation),
    fitted to preferences by maximum likelihood; the win rate is the logistic function of `quality`.
    `cross_validated` adds alpaca_eval's penalty, slopes and qualities towards 0, as strong as five-fold
    cross-validation chooses; the interval takes that strength as given.
    """
    import numpy as np

    values = np.asarray(preferences.values, dtype=float)
    differences = np.subtract(preferences.candidate_lengths, preferences.baseline_lengths).astype(float)
    ones = np.ones((1, len(values)))
    indices = preferences.prompt_indices
    count = max(indices, default=-1) + 1
    if count < 2:
        return LengthControlled(math.nan, math.nan, None, math.nan, 0.0)
    penalty = _choose_penalty(differences, values) if cross_validated else WEAK
    whole = _fit(_standardized(differences, ones), values, ones, penalty)
    ((quality, slope),) = whole
    draws = []
    for counts in _resampled(count, len(values), resamples, seed):
        weights = counts[:, indices]
        fitted = _fit(_standardized(differences, weights), values, weights, penalty, start=whole)
        draws.append(_logistic(fitted[:, 0]))
    value = float(_logistic(quality))
    if not draws:
        return LengthControlled(value, math.nan, None, float(slope), penalty)
    rates = np.concatenate(draws)
    varies = float(np.ptp(rates)) > 1e-9
    interval = _percentiles(rates, count) if varies else None
    return LengthControlled(value, float(rates.std(ddof=1)), interval, float(slope), penalty)


def _resampled(prompts: int, pairs: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each prompt is drawn in each resample, [block, prompts], a block at a time."""
    import numpy as np

    generator = np.random.default_rng(seed)
    block = max(1, BLOCK_CELLS // max(pairs, 1))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        yield generator.multinomial(prompts, np.full(prompts, 1 / prompts), size=size).astype(float)


def _percentiles(draws: Array, count: int) -> tuple[float, float]:
    """The bootstrap's percentile interval, widened to Student's t for few prompts.

    A bootstrap of n prompts is too narrow by sqrt((n - 1) / n) and knows no t: the percentiles are those of
    the normal distribution at sqrt(n / (n - 1)) t (Hesterberg 2015, arXiv:1411.5279, section 4.2).
    """
    import numpy as np

    deviations = math.sqrt(count / (count - 1)) * t_quantile(count - 1, LEVEL)
    tail = math.erfc(deviations / math.sqrt(2)) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def _standardized(differences: Array, weights: Array) -> Array:
    """tanh of the differences in length by their standard deviation in each resample: [resamples, pairs].

    0 where all are alike: nothing is to be controlled.
    """
    import numpy as np

    total = weights.sum(axis=1, keepdims=True)
    means = (weights @ differences)[:, None] / total
    squares = (weights * (differences - means) ** 2).sum(axis=1, keepdims=True)
    deviation = np.sqrt(squares / np.maximum(total - 1, 1))
    scaled = np.divide(differences, deviation, out=np.zeros_like(weights), where=deviation > 0)
    return np.tanh(scaled)


def _choose_penalty(differences: Array, values: Array) -> float:
    """The strength of PENALTIES whose fits to four of five folds predict the fifth best."""
    import numpy as np

    fold = np.arange(len(values)) % FOLDS
    weights = (fold != np.arange(FOLDS)[:, None]).astype(float)  # [FOLDS, pairs]
    features = np.repeat(_standardized(differences, np.ones((1, len(values)))), FOLDS, axis=0)
    losses = []
    for penalty in reversed(PENALTIES):  # of equally good ones the strongest
        fitted = _fit(features, values, weights, penalty)
        loss = _cross_entropy(fitted, features, values)
        losses.append(((loss * (1 - weights)).sum(axis=1) / (1 - weights).sum(axis=1)).mean())
    return PENALTIES[::-1][int(np.argmin(losses))]


def _fit(features: Array, values: Array, weights: Array, penalty: float, start: Array | None = None) -> Array:
    """(quality, slope) of each row of features and weights, [B, pairs] each: [B, 2].

    Newton's method on weighted cross-entropy + penalty * (|quality| + |slope|); a step that makes it worse is
    halved.
    """
    import numpy as np

    fitted = np.zeros((len(features), 2)) + (0 if start is None else start)
    objective = _objective(fitted, features, values, weights, penalty)
    for _ in range(STEPS):
        target = _penalized_step(fitted, features, values, weights, penalty)
        share = np.ones((len(fitted), 1))
        for _ in range(20):
            moved = fitted + share * (target - fitted)
            reached = _objective(moved, features, values, weights, penalty)
            worse = reached > objective
            if not worse.any():
                break
            share[worse] /= 2
        moved[worse], reached[worse] = fitted[worse], objective[worse]
        gain = float((objective - reached).max())
        fitted, objective = moved, reached
        if gain < 1e-9:
            break
    return fitted


def _penalized_step(fitted: Array, features: Array, values: Array, weights: Array, penalty: float) -> Array:
    """Where the quadratic approximation of the cross-entropy, with the penalty, has its minimum: [B, 2].

    By coordinates, each of which has a minimum in closed form.
    """
    import numpy as np

    rates = _logistic(fitted[:, :1] + fitted[:, 1:] * features)
    errors, spread = weights * (rates - values), weights * rates * (1 - rates)
    gradient = np.stack([errors.sum(axis=1), (errors * features).sum(axis=1)], axis=1)
    off_diagonal = (spread * features).sum(axis=1)
    diagonal = np.stack([spread.sum(axis=1), (spread * features**2).sum(axis=1)], axis=1) + 1e-9
    step = fitted.copy()
    for _ in range(SWEEPS):
        before = step.copy()
        for this, other in ((0, 1), (1, 0)):
            slope = gradient[:, this] + off_diagonal * (step - fitted)[:, other]
            pull = slope - diagonal[:, this] * fitted[:, this]
            step[:, this] = -np.sign(pull) * np.maximum(np.abs(pull) - penalty, 0) / diagonal[:, this]
        if float(np.abs(step - before).max()) < 1e-10:
            break
    return step


def _objective(fitted: Array, features: Array, values: Array, weights: Array, penalty: float) -> Array:
    import numpy as np

    loss = (weights * _cross_entropy(fitted, features, values)).sum(axis=1)
    total: Array = loss + penalty * np.abs(fitted).sum(axis=1)
    return total


def _cross_entropy(fitted: Array, features: Array, values: Array) -> Array:
    import numpy as np

    logits = fitted[:, :1] + fitted[:, 1:] * features
    loss: Array = np.maximum(logits, 0) + np.log1p(np.exp(-np.abs(logits))) - values * logits
    return loss


def _logistic(logits: Array) -> Array:
    import numpy as np

    rates: Array = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
    return rates
