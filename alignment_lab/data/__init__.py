"""From `data.*` settings to rows and token ids: read, convert, split, tokenize, cache.

Knows no model, no loss and no trainer, and does not import torch. Rows that are left out are counted with a
reason.
"""

from .loading import load_rows
from .overlap import prompt_key
from .prompts import prompt_messages
from .quarantine import Quarantine, bad_rows, count_reasons, dropped_record
from .reasons import DataError
from .rows import Message, Row
from .shortcuts import Shortcut, shortcuts
from .split import Splits, generation_rows, group_pairs, group_starts, max_train_groups, take_groups
from .table import Chained, Mapped, with_columns
from .token_cache import tokenize_cached
from .token_rows import (
    ID_COLUMNS,
    Tokenized,
    TokenRows,
    count_sequence_tokens,
    count_tokens,
    describe_counts,
    join_token_rows,
    longest_sequence,
    max_sequence_length,
    total_tokens,
    used_ids,
)
from .tokenization import TOKENIZE

__all__ = [
    "ID_COLUMNS",
    "TOKENIZE",
    "Chained",
    "DataError",
    "Mapped",
    "Message",
    "Quarantine",
    "Row",
    "Shortcut",
    "Splits",
    "TokenRows",
    "Tokenized",
    "bad_rows",
    "count_reasons",
    "count_sequence_tokens",
    "count_tokens",
    "describe_counts",
    "dropped_record",
    "generation_rows",
    "group_pairs",
    "group_starts",
    "join_token_rows",
    "load_rows",
    "longest_sequence",
    "max_sequence_length",
    "max_train_groups",
    "prompt_key",
    "prompt_messages",
    "shortcuts",
    "take_groups",
    "tokenize_cached",
    "total_tokens",
    "used_ids",
    "with_columns",
]
