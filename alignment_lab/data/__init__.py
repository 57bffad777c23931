"""From `data.*` settings to rows and token ids: read, convert, split, tokenize, cache.

Knows no model, no loss and no trainer, and does not import torch. Rows that are left out are counted with a
reason.
"""

from .loading import load_rows
from .overlap import prompt_key
from .prompts import prompt_messages
from .quarantine import Quarantine, bad_rows, count_reasons, describe_quarantine, dropped_record
from .reasons import DataError, describe_reasons
from .rows import Message, Row
from .shortcuts import Shortcut, shortcuts
from .split import (
    Splits,
    as_read,
    count_as_read,
    count_labels,
    generation_rows,
    group_pairs,
    group_starts,
    max_train_groups,
    second_halves,
    take_groups,
)
from .table import Chained, Mapped, with_columns
from .token_cache import tokenize_cached
from .token_rows import (
    COUNTED,
    ID_COLUMNS,
    Tokenized,
    TokenRows,
    count_sequence_tokens,
    count_tokens,
    describe_counts,
    join_token_rows,
    longest_sequence,
    max_sequence_length,
    special_tokens_inside,
    total_tokens,
    used_ids,
)
from .tokenization import TOKENIZE

__all__ = [
    "COUNTED",
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
    "as_read",
    "bad_rows",
    "count_as_read",
    "count_labels",
    "count_reasons",
    "count_sequence_tokens",
    "count_tokens",
    "describe_counts",
    "describe_quarantine",
    "describe_reasons",
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
    "second_halves",
    "shortcuts",
    "special_tokens_inside",
    "take_groups",
    "tokenize_cached",
    "total_tokens",
    "used_ids",
    "with_columns",
]
