"""Plans which answers are generated together, within a budget of tokens. Needs no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Some of the answers to one prompt."""

    prompt: int  # its index
    answers: range


def plan_batches(
    lengths: Sequence[int], n: int, max_new_tokens: int, max_tokens: int, max_rows: int, processes: int
) -> list[list[Share]]:
    """`n` answers to each of the prompts of these lengths, in batches.

    A batch holds at most `max_tokens`, every row being a prompt and `max_new_tokens`, as wide as the widest,
    and at most `max_rows` rows; but at least one row. There is one for each of the processes where there are
    answers enough. Prompts of similar length share a batch, the longest first.
    """
    rows_in_all = len(lengths) * n
    max_rows = max(1, min(max_rows, -(-rows_in_all // processes)))
    batches: list[list[Share]] = []
    width = room = 0  # tokens of a row of the last batch; rows that it can still take
    for prompt in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        start = 0
        while start < n:
            if not room:
                batches.append([])
                width = lengths[prompt] + max_new_tokens
                room = max(1, min(max_rows, max_tokens // width))
            count = min(room, n - start)
            batches[-1].append(Share(prompt, range(start, start + count)))
            start, room = start + count, room - count
    return batches
