"""What became of rows that were tokenized, and how their tokens are counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .reasons import BadRow
from .rows import Row

ANSWER_COLUMNS = ("chosen_ids", "rejected_ids", "completion_ids")
ID_COLUMNS = ("prompt_ids", *ANSWER_COLUMNS, "input_ids")
TOKEN_COLUMNS = (*ID_COLUMNS, "labels", "seq_lengths")  # the columns that tokenization adds, all of integers
TRUNCATED, ANSWERS, ANSWERS_TRAINED = "truncated", "answers", "answers trained"  # keys of Tokenized.counts
COUNTED = (TRUNCATED, ANSWERS, ANSWERS_TRAINED)
SHORTENED = "rows lose the beginning of their prompt at data.max_length"
SPLIT, PARTS = "conversations in parts", "parts of conversations"


@dataclass
class Tokenized:
    """What became of rows that were tokenized: one may become several sequences; texts share blocks."""

    rows: Any = field(default_factory=list)  # a sequence of rows with the columns of tokens
    indices: list[int] = field(
        default_factory=list
    )  # of the row given that each was made from; of blocks none
    # of each row, in the order of COUNTED: those of the row that it was made from, at the first of several
    # sequences and 0 at the others; of blocks none. A list, or an array [rows, 3]
    counted: Any = field(default_factory=list, compare=False)
    dropped: list[tuple[int, BadRow]] = field(default_factory=list)  # (index of the row given, why)
    # truncated: rows that were cut at max_length; answers, answers trained: those of the rows that were kept;
    # conversations in parts, and their parts: those that the template makes several sequences of; any other
    # key says what was seen in as many rows or answers
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, index: int, rows: Iterable[Row], truncated: bool, answers: int, trained: int) -> None:
        """Rows with tokens, all made from the row given at `index`, and what is counted of that."""
        of_row = (int(truncated), answers, trained)
        self.counts.update(dict(zip(COUNTED, of_row, strict=True)))
        for row in rows:
            self.rows.append(row)
            self.indices.append(index)
            self.counted.append(of_row)
            of_row = (0, 0, 0)

    def count_shortened(self, before: int, after: int) -> None:
        """Count a row whose prompt had so many tokens, and has so many."""
        if after < before:
            self.counts[SHORTENED] += 1

    def drop(self, index: int, bad_row: BadRow) -> None:
        """Leave out the row given at `index`."""
        self.dropped.append((index, bad_row))


def describe_counts(counts: Counter[str]) -> list[str]:
    """What a user should know of `Tokenized.counts`, in sentences; nothing where every answer is trained from
    one sequence, as it stands.
    """
    lines = []
    if counts[ANSWERS_TRAINED] < counts[ANSWERS]:
        trained = f"{counts[ANSWERS_TRAINED]} of {counts[ANSWERS]}"
        lines.append(f"{trained} answers are trained: the others lie behind data.max_length")
    if counts[SPLIT]:
        lines.append(
            f"{counts[SPLIT]} conversations are {counts[PARTS]} sequences: before a later answer the chat "
            "template writes earlier turns otherwise, or their tokens are others"
        )
    known = {TRUNCATED, ANSWERS, ANSWERS_TRAINED, SPLIT, PARTS}
    return lines + [f"{count} {what}" for what, count in sorted(counts.items()) if what not in known]


def count_tokens(row: Row) -> int:
    """Tokens of a tokenized row; a preference row's prompt counts once."""
    return sum(len(row[column]) for column in ID_COLUMNS if column in row)


def count_sequence_tokens(row: Row) -> int:
    """Tokens of all sequences of a tokenized row; a prompt counts with each of its answers."""
    answers = [len(row[column]) for column in ANSWER_COLUMNS if column in row]
    return sum(len(row["prompt_ids"]) + length for length in answers) if answers else len(row["input_ids"])


def max_sequence_length(row: Row) -> int:
    """Tokens of the longest sequence of a tokenized row."""
    if "seq_lengths" in row:
        return max(row["seq_lengths"])
    answers = [len(row[column]) for column in ANSWER_COLUMNS if column in row]
    return len(row["prompt_ids"]) + max(answers) if answers else len(row["input_ids"])
