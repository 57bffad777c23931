"""From a `data` setting to rows: read, bring to one of TRL's dataset types, split, and say what was left out. No torch."""

from .formats import DataError
from .loading import load
from .split import Rows, first, needed, prompt_of, questions, units
from .tokenise import longest, size
from .tokens import cached

__all__ = ["DataError", "Rows", "cached", "first", "load", "longest", "needed", "prompt_of", "questions", "size", "units"]
