"""The code of docs/guides: fenced blocks, in order, and the files that a guide names before them."""

from __future__ import annotations

import re
from pathlib import Path

GUIDES = Path(__file__).resolve().parents[1] / "docs" / "guides"
FILE = re.compile(r"^`([\w./-]+)`[^\n]*:\n\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def files_of(guide: str) -> dict[str, str]:
    """The contents of every file that the guide shows, by its path."""
    return dict(FILE.findall((GUIDES / guide).read_text()))


def python_of(guide: str) -> list[str]:
    """Every block of Python."""
    return PYTHON.findall((GUIDES / guide).read_text())
