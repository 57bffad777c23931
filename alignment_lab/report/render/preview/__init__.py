"""Rows as the model sees them, token by token: what `action=preview` shows in the terminal and on its page.

Knows tokens as texts with a kind; refuses to know how they were made.
"""

from .page import write_preview_page
from .parts import Histogram, Kind, LeftOut, Part, Preview, Run, ShownRow, Table, Token
from .terminal import show_preview

__all__ = [
    "Histogram",
    "Kind",
    "LeftOut",
    "Part",
    "Preview",
    "Run",
    "ShownRow",
    "Table",
    "Token",
    "show_preview",
    "write_preview_page",
]
