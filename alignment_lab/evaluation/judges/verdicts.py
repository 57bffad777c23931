"""What a judge is asked, and what it said: both orders of every pair, and nothing dropped without a word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ...data.rows import Message
from ..winrate import both_orders

NO_VERDICT = "no verdict"


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt."""

    prompt: tuple[Message, ...]
    answer: str
    other: str

    @property
    def swapped(self) -> Pair:
        """The same with the other answer first."""
        return Pair(self.prompt, self.other, self.answer)

    @property
    def is_identical(self) -> bool:
        """Whether there is nothing to judge."""
        return self.answer.strip() == self.other.strip()


class Judge(Protocol):
    """Whoever compares two answers."""

    name: str
    depends_on_order: bool  # a reward model scores each answer by itself: its verdict cannot
    counts: Counter[str]  # what happened besides verdicts: retries, failures, in words

    def probabilities(self, pairs: Sequence[Pair], label: str) -> list[float | None]:
        """That `answer` is better than `other`, shown in this order; None where there is no verdict.

        `label` stands beside the progress bar.
        """


@dataclass(frozen=True)
class Verdict:
    """What was said of a pair: the probability that its `answer` is better, by the place it was shown in."""

    shown_first: float
    shown_second: float
    is_asked: bool = True  # identical answers are a tie without asking

    @property
    def preference(self) -> float:
        """For `answer`, in [0, 1]."""
        return both_orders([self.shown_first], [self.shown_second])[0]

    @property
    def flip(self) -> float:
        """1 where the better answer changes with the order, 0.5 where a tie does, else 0."""
        return abs(_winner(self.shown_first) - _winner(self.shown_second))


TIE = Verdict(0.5, 0.5, is_asked=False)


@dataclass
class Asked:
    """Verdicts in the order of the pairs."""

    verdicts: list[Verdict | None] = field(default_factory=list)  # None: no verdict in one of the orders

    @property
    def missing(self) -> int:
        """Pairs without a verdict."""
        return sum(verdict is None for verdict in self.verdicts)


def ask(judge: Judge, pairs: Sequence[Pair], label: str) -> Asked:
    """Every pair in both orders; identical answers are ties, and are not asked about."""
    places = [place for place, pair in enumerate(pairs) if not pair.is_identical]
    shown = [pairs[place] for place in places]
    orders = [*shown, *(pair.swapped for pair in shown)] if judge.depends_on_order else shown
    said = judge.probabilities(orders, label) if orders else []
    first = said[: len(shown)]
    second = [None if p is None else 1 - p for p in said[len(shown) :]] if judge.depends_on_order else first
    verdicts: list[Verdict | None] = [TIE] * len(pairs)
    for place, one, other in zip(places, first, second, strict=True):
        verdicts[place] = None if one is None or other is None else Verdict(one, other)
    return Asked(verdicts)


def _winner(probability: float) -> float:
    return 0.5 if probability == 0.5 else float(probability > 0.5)
