"""Single values of a row: text, numbers, labels, JSON in a string."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

from ..reasons import BadRow, Reason
from ..rows import Row

LABEL_WORDS = {
    **dict.fromkeys(("true", "yes", "1", "good", "chosen", "positive", "desirable"), True),
    **dict.fromkeys(("false", "no", "0", "bad", "rejected", "negative", "undesirable"), False),
}


def describe_type(value: Any) -> str:
    """What a value is, in words that a user of JSON knows."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return "a number"
    names: dict[type, str] = {str: "text", list: "a list", tuple: "a list", dict: "a mapping"}
    return names.get(type(value), f"a {type(value).__name__}")


def is_given(value: Any) -> bool:
    """Whether a column says anything: neither null nor an empty text, list or mapping."""
    return bool(value) or (value is not None and not isinstance(value, str | list | dict))


def read_text(row: Row, column: str) -> str:
    """The text of a column; "" where the row has none. Raises BadRow for another type."""
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRow(Reason.not_text, f"`{column}` is not text but {describe_type(value)}")
    return value


def read_number(value: Any, name: str) -> float:
    """A finite number, or the text of one, as in CSV. Raises BadRow, which calls the value by `name`."""
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):  # an integer may have more than 308 digits
            if math.isfinite(number := float(value)):
                return number
    raise BadRow(Reason.bad_number, f"{name} is not a finite number")


def read_label(row: Row, column: str = "label") -> bool:
    """Whether an answer is good: true or false, 1 or 0, or a word for it."""
    label = row.get(column)
    if label is None:
        raise BadRow(Reason.missing_column, f"`{column}` is missing")
    if (truth := as_truth(label)) is None:
        if isinstance(label, str):
            what = f"{label[:40]!r} is not one of {', '.join(LABEL_WORDS)}"
        else:
            is_number = isinstance(label, int | float)
            what = f"{label!r:.40} is not 0 or 1" if is_number else f"it is {describe_type(label)}"
        raise BadRow(Reason.bad_label, f"`{column}` is neither true nor false: {what}")
    return truth


def as_truth(value: Any) -> bool | None:
    """True or false, 1 or 0, or a word for it; else None."""
    if isinstance(value, str):
        value = LABEL_WORDS.get(value.strip().lower())
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def is_json(value: Any) -> bool:
    """Whether a value can be written as JSON."""
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def parse_json(value: Any) -> Any:
    """What a text of JSON says; any other value, and text that is no JSON, as it is."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
