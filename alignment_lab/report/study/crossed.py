"""Means and differences over seeds and prompts: every seed answers the same prompts, and both are samples.

The value of a seed on a prompt is the mean, an effect of the prompt, one of the seed, and one of both
together. A mean over S seeds and P prompts then has the variance (Cornfield and Tukey 1956)

    prompts / P + seeds / S + both / (P S)

Knows nothing of runs and metrics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...runtime.cluster_means import Influence
from ...runtime.distributions import t_quantile, two_sided_p
from .stats import RELATIVE_ROUNDING, Estimate, squared_error

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class SeedSample:
    """One configuration's metric, or the difference of two: a mean for each seed, and its error by prompt."""

    means: list[float]  # [seeds]
    errors: np.ndarray  # [seeds, prompts] of `Influence`
    degrees: float  # of freedom of the error over prompts
    prompts: tuple[str, ...]


def seed_sample(influences: Sequence[Influence], prompts: tuple[str, ...]) -> SeedSample:
    """The sample of seeds that were measured on the same prompts, in the same order."""
    import numpy as np

    return SeedSample(
        [each.mean for each in influences],
        np.stack([each.errors for each in influences]),
        min(each.degrees for each in influences),
        prompts,
    )


def mean(sample: SeedSample) -> Estimate:
    """The mean of two seeds or more, for other seeds and for other prompts."""
    return _estimate(_center(sample), sample.errors.mean(0), sample.degrees, [sample])


def paired_difference(ours: SeedSample, theirs: SeedSample) -> Estimate:
    """ours - theirs, seed by seed and prompt by prompt: what a seed or a prompt does to both cancels."""
    return mean(_difference(ours, theirs))


def unpaired_difference(ours: SeedSample, theirs: SeedSample) -> Estimate:
    """ours - theirs on the same prompts, from seeds that are not shared."""
    errors = ours.errors.mean(0) - theirs.errors.mean(0)
    degrees = min(ours.degrees, theirs.degrees)
    return _estimate(_center(ours) - _center(theirs), errors, degrees, [ours, theirs])


def difference_over_prompts(ours: SeedSample, theirs: SeedSample) -> Estimate:
    """ours - theirs of these very seeds, for other prompts: Student's paired test of the prompts."""
    difference = _difference(ours, theirs)
    center, variance = _center(difference), float((difference.errors.mean(0) ** 2).sum())
    count = difference.errors.shape[1]
    if not _is_spread(variance, ours, theirs):
        return Estimate(center, None, None if center else 1.0, count)
    half_width = t_quantile(difference.degrees) * math.sqrt(variance)
    p = two_sided_p(center / math.sqrt(variance), difference.degrees)
    return Estimate(center, (center - half_width, center + half_width), p, count)


def _difference(ours: SeedSample, theirs: SeedSample) -> SeedSample:
    return SeedSample(
        [mine - other for mine, other in zip(ours.means, theirs.means, strict=True)],
        ours.errors - theirs.errors,
        min(ours.degrees, theirs.degrees),
        ours.prompts,
    )


def _center(sample: SeedSample) -> float:
    return math.fsum(sample.means) / len(sample.means)


def _is_spread(variance: float, *samples: SeedSample) -> bool:
    """Whether a variance is more than rounding."""
    size = max(abs(value) for sample in samples for value in sample.means)
    return math.sqrt(variance) > RELATIVE_ROUNDING * size


def _estimate(center: float, errors: np.ndarray, degrees: float, samples: Sequence[SeedSample]) -> Estimate:
    """The estimate whose error over prompts is `errors` [prompts], over the seeds of each of `samples`.

    The error over prompts and that over seeds both hold what prompt and seed do together, which is taken off
    once (the two-way variance of Cameron, Gelbach and Miller 2011), as long as the rest is no smaller than
    either. Degrees of freedom are Satterthwaite's (1946). Where seeds are few and by chance agree, that alone
    would be too narrow: the interval is at least as wide as that over seeds and that over prompts, and the
    p-value at least as large.
    """
    over_prompts = float((errors**2).sum())
    over_seeds, seed_degrees = squared_error([sample.means for sample in samples])
    both = sum(float(sample.errors.var(0, ddof=1).sum()) / len(sample.means) for sample in samples)
    seeds, prompts = min(len(sample.means) for sample in samples), len(errors)
    total = max(over_prompts, over_seeds, over_prompts + over_seeds - both)
    if not _is_spread(over_seeds + both, *samples) or not _is_spread(total, *samples):
        return Estimate(center, None, None if center else 1.0, seeds, prompts)
    satterthwaite = total**2 / (over_prompts**2 / degrees + over_seeds**2 / seed_degrees)
    parts = [(total, max(1.0, satterthwaite)), (over_prompts, degrees), (over_seeds, seed_degrees)]
    spread = [(math.sqrt(variance), df) for variance, df in parts if _is_spread(variance, *samples)]
    half_width = max(t_quantile(df) * error for error, df in spread)
    p = max(two_sided_p(center / error, df) for error, df in spread)
    return Estimate(center, (center - half_width, center + half_width), p, seeds, prompts)
