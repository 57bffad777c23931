"""Plans which answers are generated together, within a budget of tokens. Needs no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Share:
    """Some of the answers to one prompt."""

    prompt: int  # its index
    answers: range


@dataclass(frozen=True)
class Budget:
    """What fits into a batch: tokens of prompts and answers together, and answers."""

    max_tokens: int
    max_rows: int
    max_new_tokens: int  # of an answer
    shares_prompts: bool  # a prompt takes its space once for all of its answers

    def room(self, prompts: int, rows: int, width: int) -> int:
        """Answers to one more prompt that fit beside so many, each prompt taking `width` tokens."""
        if self.shares_prompts:
            left = self.max_tokens - width * (prompts + 1)
            fitting = left // self.max_new_tokens - rows
        else:
            fitting = self.max_tokens // (width + self.max_new_tokens) - rows
        return max(0, min(fitting, self.max_rows - rows))


def plan_batches(lengths: Sequence[int], n: int, budget: Budget, processes: int = 1) -> list[list[Share]]:
    """`n` answers to each of the prompts of these lengths, in batches within the budget.

    A batch holds at least one answer. There is a batch for each of the processes where there are answers
    enough. Prompts of similar length share a batch, the longest first.
    """
    rows_in_all = len(lengths) * n
    budget = replace(budget, max_rows=max(1, min(budget.max_rows, -(-rows_in_all // processes))))
    batches: list[list[Share]] = []
    width = rows = 0  # tokens of the longest prompt of the last batch, answers in it
    for prompt in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        start = 0
        while start < n:
            room = budget.room(len(batches[-1]), rows, width) if batches else 0
            if not room:
                batches.append([])
                width, rows = lengths[prompt], 0
                room = max(1, budget.room(0, 0, width))
            count = min(room, n - start)
            batches[-1].append(Share(prompt, range(start, start + count)))
            start, rows = start + count, rows + count
    return batches
