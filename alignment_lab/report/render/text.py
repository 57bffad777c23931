"""Numbers and texts as a reader sees them, the same in the terminal and on the page. Knows no files and no tables."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

ABSENT = "–"
CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)  # generations may hold escape codes that would repaint a terminal

# The metrics that readers ask for first, in that order; the others follow as the run wrote them.
FIRST_METRICS = (
    "answers/correct",
    "eval_rewards/accuracies",
    "eval_mean_token_accuracy",
    "eval_loss",
    "eval_rewards/margins",
    "answers/one_sentence",
    "answers/words",
)
SHARE = re.compile(r"(accurac(y|ies)|correct|one_sentence|share|rate)$")


def number(value: Any) -> str:
    """A number with three or four significant digits; what is not a number as it is, None as a dash."""
    if value is None:
        return ABSENT
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return _decimal(value, _decimals(value))


def _decimals(value: float) -> int:
    size = abs(value)
    return 3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0


def _decimal(value: float, decimals: int) -> str:
    if not math.isfinite(value):
        return str(value)
    if value and abs(value) < 10**-decimals:
        return f"{value:.2g}"
    return f"{value:,.{decimals}f}"


def value_of(estimate: Any) -> float | None:
    """The value of one {"value", "ci95", "n"}; None where nothing was measured."""
    return estimate.get("value") if isinstance(estimate, Mapping) else estimate


def interval_of(estimate: Any) -> tuple[float, float] | None:
    """The 95% interval of an estimate, or None where it has none."""
    bounds = estimate.get("ci95") if isinstance(estimate, Mapping) else None
    return (bounds[0], bounds[1]) if bounds and None not in bounds else None


def n_of(estimate: Any) -> int | None:
    """How many rows an estimate rests on, or None where that was not recorded."""
    return estimate.get("n") if isinstance(estimate, Mapping) else None


def n_of_metric(pair: Any) -> int | None:
    """The n of a metric's after, or where there is none of its before."""
    return n_of(pair.get("after")) or n_of(pair.get("before"))


def _digits(estimate: Any) -> int | None:
    """Decimals worth printing: two significant digits of the interval's half width. None where there is no interval."""
    bounds = interval_of(estimate)
    half = abs(bounds[1] - bounds[0]) / 2 if bounds else 0.0
    return max(0, 1 - math.floor(math.log10(half))) if half and math.isfinite(half) else None


def _rounded(value: float, digits: int | None) -> str:
    """`value` with `digits` decimals, five at most; tiny ones as powers of ten, lest they read as zero."""
    if digits is None:
        return number(value)
    if digits > 4 and 0 < abs(value) < 0.01:
        return f"{value:.2g}"
    return f"{value:,.{min(digits, 5)}f}"


def point(estimate: Any) -> str:
    """The value of an estimate, with as many decimals as its interval supports."""
    value, digits = value_of(estimate), _digits(estimate)
    return number(value) if value is None else _rounded(value, digits)


def interval(estimate: Any) -> str:
    """`[0.59, 0.81]`, or nothing."""
    bounds, digits = interval_of(estimate), _digits(estimate)
    return f"[{', '.join(_rounded(bound, digits) for bound in bounds)}]" if bounds else ""


def with_interval(estimate: Any) -> str:
    """`0.70 [0.59, 0.81]`: the value with its 95% interval where it has one."""
    return f"{point(estimate)} {interval(estimate)}".rstrip()


def gigabytes(value: float | None) -> str:
    """Gigabytes with one decimal, small ones with two."""
    return ABSENT if value is None else f"{value:.{2 if value < 10 else 1}f}"


def is_share(name: str) -> bool:
    """Whether a metric of this name is a share in [0, 1], to be read as a percentage."""
    return SHARE.search(name) is not None


def percent_of(estimate: Any) -> str:
    """A share in [0, 1] as `70.3%`."""
    value = value_of(estimate)
    return ABSENT if value is None else f"{100 * value:.1f}%"


def percent_interval(estimate: Any) -> str:
    """The 95% interval of a share as `[58.6, 80.6]`, in per cent; nothing where there is none."""
    bounds = interval_of(estimate)
    return f"[{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]" if bounds else ""


def duration(seconds: float | None) -> str:
    """Seconds as a reader says them: `42 s`, `3.5 min`, `2.1 h`."""
    if seconds is None:
        return ABSENT
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def clip(text: Any, limit: int = 300) -> str:
    """`text` without control characters, at most `limit` characters long; an ellipsis says that something is missing."""
    clean = CONTROL.sub("", "" if text is None else str(text)).strip()
    return clean if len(clean) <= limit else clean[: limit - 1].rstrip() + "…"


def conversation(prompt: Any, limit: int = 300) -> str:
    """A prompt as text: the bare content of a single message, `role: content` lines of several."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, str):
        return clip(prompt, limit)
    messages = [
        (turn.get("role", "?"), turn.get("content", "")) for turn in prompt if isinstance(turn, Mapping)
    ]
    if len(messages) == 1:
        return clip(messages[0][1], limit)
    return clip("\n".join(f"{role}: {content}" for role, content in messages), limit)


def ordered_metrics(metrics: Mapping[str, Any]) -> list[str]:
    """The names of `metrics`, those that readers ask for first in front."""
    return [name for name in FIRST_METRICS if name in metrics] + [
        name for name in metrics if name not in FIRST_METRICS
    ]
