"""How a setting is refused: one sentence that names the key, the value and the remedy."""

from __future__ import annotations

import difflib
from typing import Any

from ..runtime.errors import UserError


class SpecError(UserError):
    """A value out of its range, or two settings that exclude each other."""


def require(condition: bool, key: str, value: Any, remedy: str) -> None:
    """Raise SpecError unless `condition` holds."""
    if not condition:
        raise SpecError(f"{key}={'null' if value is None else value}: {remedy}")


def require_positive(group: str, settings: object, *names: str) -> None:
    """Raise SpecError unless each of these settings of a group is above 0, or null."""
    for name in names:
        value = getattr(settings, name)
        require(value is None or value > 0, f"{group}.{name}", value, "must be above 0.")


def require_nonnegative(group: str, settings: object, *names: str) -> None:
    """Raise SpecError unless each of these settings of a group is 0 or more."""
    for name in names:
        value = getattr(settings, name)
        require(value >= 0, f"{group}.{name}", value, "must be 0 or more.")


def did_you_mean(word: str, candidates: list[str], *, cutoff: float = 0.6) -> str:
    """`; did you mean NEAREST?`, or nothing where no candidate is near: 1 is the word itself."""
    nearest = difflib.get_close_matches(word, candidates, n=1, cutoff=cutoff)
    return f"; did you mean {nearest[0]}?" if nearest else ""
