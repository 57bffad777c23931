"""How a setting is refused: one sentence that names the key, the value and the remedy."""

from __future__ import annotations

from typing import Any

from ..runtime.errors import UserError


class SpecError(UserError):
    """A value out of its range, or two settings that cannot stand together."""


def require(holds: bool, key: str, value: Any, remedy: str) -> None:
    """Raise SpecError unless `holds`."""
    if not holds:
        raise SpecError(f"{key}={'null' if value is None else value}: {remedy}")
