"""From `data.*` settings to rows and token ids: read, convert, split, tokenize, cache.

Knows no model, no loss and no trainer, and does not import torch. Rows that are left out are counted with a
reason.
"""

from .loading import load_rows
from .overlap import prompt_key, prompt_messages
from .reasons import DataError
from .rows import Message, Row
from .shortcuts import Shortcut, shortcuts
from .split import Splits, generation_rows, group_pairs, group_starts, max_train_groups, take_groups
from .token_cache import tokenize_cached
from .tokenization import (
    ID_COLUMNS,
    TOKENIZE,
    Tokenized,
    count_sequence_tokens,
    count_tokens,
    max_sequence_length,
)

__all__ = [
    "ID_COLUMNS",
    "TOKENIZE",
    "DataError",
    "Message",
    "Row",
    "Shortcut",
    "Splits",
    "Tokenized",
    "count_sequence_tokens",
    "count_tokens",
    "generation_rows",
    "group_pairs",
    "group_starts",
    "load_rows",
    "max_sequence_length",
    "max_train_groups",
    "prompt_key",
    "prompt_messages",
    "shortcuts",
    "take_groups",
    "tokenize_cached",
]
