"""Numbers and texts as a reader sees them, the same in the terminal and on the page. Knows no files and no tables."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

ABSENT = "–"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # generations may hold escape codes that would repaint a terminal

# The metrics that readers ask for first, in that order; the others follow as the run wrote them.
FIRST_METRICS = (
    "answers/correct",
    "eval_rewards/accuracies",
    "eval_mean_token_accuracy",
    "eval_loss",
    "eval_rewards/margins",
    "answers/words",
)
SHARE = re.compile(r"(accurac(y|ies)|correct|share|rate)$")


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


def interval(estimate: Any) -> str:
    """`[0.586, 0.806]`, or nothing."""
    bounds = interval_of(estimate)
    if bounds is None:
        return ""
    decimals = _decimals(max(map(abs, bounds)))
    return f"[{_decimal(bounds[0], decimals)}, {_decimal(bounds[1], decimals)}]"


def with_interval(estimate: Any) -> str:
    """`0.703 [0.586, 0.806]`: the value with its 95% interval where it has one."""
    return f"{number(value_of(estimate))} {interval(estimate)}".rstrip()


def is_share(name: str) -> bool:
    """Whether a metric of this name is a share in [0, 1], to be read as a percentage."""
    return SHARE.search(name) is not None


def percent(value: float | None) -> str:
    """A share in [0, 1] as `70.3%`."""
    return ABSENT if value is None else f"{100 * value:.1f}%"


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
    messages = [(turn.get("role", "?"), turn.get("content", "")) for turn in prompt if isinstance(turn, Mapping)]
    if len(messages) == 1:
        return clip(messages[0][1], limit)
    return clip("\n".join(f"{role}: {content}" for role, content in messages), limit)


def ordered_metrics(metrics: Mapping[str, Any]) -> list[str]:
    """The names of `metrics`, those that readers ask for first in front."""
    return [name for name in FIRST_METRICS if name in metrics] + [name for name in metrics if name not in FIRST_METRICS]
