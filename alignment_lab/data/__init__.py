"""From a `data` setting to rows: read, bring to one of TRL's dataset types, split, and say what was left out. No torch."""

from .formats import DataError
from .loading import load
from .split import Rows, first_rows, pair_units, prompt_of, rows_needed, rows_to_answer
from .token_cache import cached_tokens
from .tokenization import longest_sequence, row_tokens

__all__ = [
    "DataError",
    "Rows",
    "cached_tokens",
    "first_rows",
    "load",
    "longest_sequence",
    "pair_units",
    "prompt_of",
    "row_tokens",
    "rows_needed",
    "rows_to_answer",
]
