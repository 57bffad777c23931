"""Why a row is left out: a closed list, by which rows are counted, quarantined and reported."""

from __future__ import annotations

from enum import Enum


class Reason(Enum):
    """Why a row is left out; its value says it of any row, in words that follow a count."""

    unreadable = "cannot be read"  # a line that is cut, no UTF-8, not the type that the file has
    not_a_row = "are no mapping of columns"


class BadRow(ValueError):
    """A row that cannot be used. `detail` names the column, role or value, and is the same for equal defects,
    which are counted together.
    """

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(detail or reason.value)
        self.reason, self.detail = reason, detail
