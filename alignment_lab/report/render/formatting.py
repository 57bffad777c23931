"""Numbers and texts as readers see them, the same in the terminal, in files and on the page."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from ..study.values import ReportedValue, interval_of, is_number, value_of

ABSENT = "–"
# Generated answers may hold escape sequences that would repaint a terminal.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def format_number(value: object) -> str:
    """A number with three or four significant digits; other values as they are, None as a dash."""
    if value is None:
        return ABSENT
    if not is_number(value):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return _fixed_point(value, _decimals(value))


def _decimals(value: float) -> int:
    size = abs(value)
    return 3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0


def _fixed_point(value: float, decimals: int) -> str:
    if not math.isfinite(value):
        return str(value)
    if value and abs(value) < 10**-decimals:
        return f"{value:.2g}"
    return f"{value:,.{decimals}f}"


def _interval_decimals(measured: ReportedValue) -> int | None:
    """Decimals for two significant digits of the interval's half width; None without an interval."""
    bounds = interval_of(measured)
    half = abs(bounds[1] - bounds[0]) / 2 if bounds else 0.0
    return max(0, 1 - math.floor(math.log10(half))) if half and math.isfinite(half) else None


def _round(value: float, decimals: int | None) -> str:
    """`value` with `decimals` decimals, five at most.

    Tiny ones in scientific notation, so that they do not read as zero.
    """
    if decimals is None:
        return format_number(value)
    if decimals > 4 and 0 < abs(value) < 0.01:
        return f"{value:.2g}"
    return f"{value:,.{min(decimals, 5)}f}"


def format_value(measured: ReportedValue) -> str:
    """The value alone, with as many decimals as its interval supports."""
    value = value_of(measured)
    return ABSENT if value is None else _round(value, _interval_decimals(measured))


def format_interval(measured: ReportedValue) -> str:
    """`[0.59, 0.81]`, or an empty string."""
    bounds, decimals = interval_of(measured), _interval_decimals(measured)
    return f"[{', '.join(_round(bound, decimals) for bound in bounds)}]" if bounds else ""


def format_measured(measured: ReportedValue) -> str:
    """`0.70 [0.59, 0.81]`: the value, with its 95% interval where it has one."""
    return f"{format_value(measured)} {format_interval(measured)}".rstrip()


def format_percent(measured: ReportedValue) -> str:
    """A share in [0, 1] as `70.3%`."""
    value = value_of(measured)
    return ABSENT if value is None else f"{100 * value:.1f}%"


def format_percent_interval(measured: ReportedValue) -> str:
    """The 95% interval of a share in percent, `[58.6, 80.6]`, or an empty string."""
    bounds = interval_of(measured)
    return f"[{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]" if bounds else ""


def format_gigabytes(value: float | None) -> str:
    """Gigabytes with one decimal, with two below 10."""
    return ABSENT if value is None else f"{value:.{2 if value < 10 else 1}f}"


def format_duration(seconds: float | None) -> str:
    """Seconds in the unit that suits them: `42 s`, `3.5 min`, `2.1 h`."""
    if seconds is None:
        return ABSENT
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def clip(text: object, limit: int = 300) -> str:
    """The text without control characters, cut to `limit` characters with an ellipsis."""
    clean = CONTROL.sub("", "" if text is None else str(text)).strip()
    return clean if len(clean) <= limit else clean[: limit - 1].rstrip() + "…"


def format_prompt(prompt: object, limit: int = 300) -> str:
    """A prompt as text: the content of a single message, `role: content` lines of several."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, str):
        return clip(prompt, limit)
    messages = [
        (turn.get("role", "?"), turn.get("content", "")) for turn in prompt if isinstance(turn, Mapping)
    ]
    if len(messages) == 1:
        return clip(messages[0][1], limit)
    return clip("\n".join(f"{role}: {content}" for role, content in messages), limit)


def wrap_name(name: str, width: int = 15) -> list[str]:
    """A metric's name in lines of about `width` characters, broken after a slash or an underscore."""
    lines = [""]
    for part in re.findall(r"[^/_]*[/_]?", name):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return lines
