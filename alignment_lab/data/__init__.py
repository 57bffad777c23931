"""From a `data` setting to rows: read, bring to one of TRL's dataset types, split, and say what was left out. No torch."""

from .formats import DataError
from .split import Rows, load, needed, prompt_of
from .tokenise import size
from .tokens import cached

__all__ = ["DataError", "Rows", "cached", "load", "needed", "prompt_of", "size"]
