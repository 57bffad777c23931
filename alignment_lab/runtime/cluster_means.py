"""Means over prompts that were drawn from a population: rows of one prompt are one draw.

A mean over rows is a ratio of sums over prompts, sum(values) / sum(weights), whose weights are numbers of
rows or of tokens. `Influence` says what each prompt adds to its error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .distributions import Z, exact_share_interval

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray


@dataclass(frozen=True)
class Influence:
    """A ratio of sums over prompts and its error: the variance of `mean` is the sum of `errors` squared."""

    mean: float
    errors: Array  # [prompts]
    degrees: float  # of freedom of that variance


def sum_by_prompt(
    prompts: Sequence[int],
    values: Sequence[float] | Array,
    weights: Sequence[float] | Array | None,
    count: int,
) -> tuple[Array, Array]:
    """The sums of values, and of weights or numbers of rows, of each of `count` prompts: [count] each."""
    import numpy as np

    return (
        np.bincount(prompts, values, minlength=count),
        np.bincount(prompts, weights, minlength=count).astype(float),
    )


def influence(values: Array, weights: Array) -> Influence:
    """How much each of two prompts or more moves sum(values) / sum(weights), from sums by prompt: [prompts].

    The errors are those of the linearized ratio (Cochran 1977, 6.4), each divided by sqrt(1 - h), where h is
    the prompt's share of the weights: the mean draws a heavy prompt towards itself (CR2 of Bell and McCaffrey
    2002). Degrees of freedom are Satterthwaite's if errors grow with the weights: prompts - 1 where all weigh
    the same, and few where some prompts have most of the rows.
    """
    import numpy as np

    total = weights.sum()
    mean = float(values.sum() / total)
    shares = weights / total
    residuals = (values - mean * weights) / total
    errors = residuals / np.sqrt(np.maximum(1 - shares, 1e-12))
    squares = weights**2
    degrees = max(1.0, float(squares.sum() ** 2 / (squares**2).sum()) - 1)
    return Influence(mean, errors, degrees)


def share_interval(share: float, half_width: float, prompts: int, most: float) -> tuple[float, float]:
    """The interval of a share in [0, 1] that Student's would put at share +- half_width.

    It is that of Clopper and Pearson for the number of independent draws whose mean is as uncertain (Korn and
    Graubard 1998), at most `most`. Where no prompt differs from another, a prompt is a draw.
    """
    variance = share * (1 - share)
    draws = min(most, variance * (Z / half_width) ** 2) if half_width > 0 and variance > 0 else prompts
    return exact_share_interval(share * draws, draws)
