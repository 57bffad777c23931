"""Which setting named what is read, for the sentences that refuse it; and the files and stretches to read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..reasons import DataError

Part = Literal["train", "eval"]
Key = Callable[[str], str]
"""The dotted key of one of a source's settings, as it is typed: `partial(data.key, name)`."""

DAMAGED = "it is damaged: fetch or write it anew."


@dataclass(frozen=True)
class Setting:
    """A setting and its value."""

    key: str
    value: str

    def error(self, problem: str) -> DataError:
        """A DataError that names both; `problem` says what is there and what helps."""
        return DataError(f"{self.key}={self.value}: {problem}")


@dataclass(frozen=True)
class DataFile:
    """A file of rows, what it holds, and the setting that named it."""

    path: Path
    name: str  # as a user would name it
    kind: str  # a key of `opening.READERS`
    compression: str | None  # a value of `kinds.PACKED`
    setting: Setting
    # features by column, as `datasets` writes them, where a README.md or a dataset_info.json has them
    features: dict[str, Any] = field(default_factory=dict, compare=False)

    def error(self, problem: str) -> DataError:
        """A DataError about this file; it is named where the setting named a folder or a pattern."""
        is_named = self.name == self.setting.value
        return self.setting.error(problem if is_named else f"{self.name} {problem}")


@dataclass(frozen=True)
class Span:
    """A stretch of one file, read by itself: bytes of lines, row groups, or the whole of a file."""

    file: DataFile
    start: int = 0
    end: int | None = None  # None: the end of the file
    line: int = 1  # the number of the first line, or row, in it


class Skip:
    """How many rows are still to be passed over."""

    def __init__(self, left: int = 0) -> None:
        self.left = left

    def one(self) -> bool:
        """Whether the next row is passed over."""
        if not self.left:
            return False
        self.left -= 1
        return True

    def all_of(self, count: int) -> bool:
        """Whether the next `count` rows are all passed over; if not, none of them is yet."""
        if self.left < count:
            return False
        self.left -= count
        return True


def listed(names: Iterable[str], most: int = 6) -> str:
    """`a, b and 3 more`."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
