"""Which tokens are computed together: sequences with one prompt become a tree, trees are packed to a budget of tokens. No torch.

A plan depends on the sequences and the budget alone: the same for every seed, worker and machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

IGNORE_INDEX = -100


@dataclass(frozen=True)
class ScoredSequence:
    """One sequence to score: a prompt, its answer, and a label per token of both.

    A label is the token itself where it is scored and IGNORED elsewhere; None scores the answer and nothing else.
    """

    prompt: list[int]
    answer: list[int]
    labels: list[int] | None = None

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)

    def scored(self) -> list[tuple[int, int]]:
        """(place, token) of what is scored: nothing predicts a sequence's first token."""
        labels = self.labels or [IGNORE_INDEX] * len(self.prompt) + self.answer
        return [(place, label) for place, label in enumerate(labels) if place and label != IGNORE_INDEX]


@dataclass
class Tree:
    """Sequences that share their prompt, as indices into what was planned. `tokens`: the prompt once, every answer."""

    prompt: int  # tokens
    sequence_ids: list[int]
    tokens: int
    longest: int  # tokens of its longest sequence


def build_trees(sequences: Sequence[ScoredSequence]) -> list[Tree]:
    """Group by equal prompts; a sequence without a prompt stands alone."""
    found: dict[Any, Tree] = {}
    for index, sequence in enumerate(sequences):
        tree = found.setdefault(
            tuple(sequence.prompt) or index, Tree(len(sequence.prompt), [], len(sequence.prompt), 0)
        )
        tree.sequence_ids.append(index)
        tree.tokens += len(sequence.answer)
        tree.longest = max(tree.longest, len(sequence))
    return list(found.values())


def pack_trees(planned: Sequence[Tree], budget: int) -> list[list[Tree]]:
    """Packs of at most `budget` tokens, first fit, longest tree first; a tree that is longer goes alone."""
    packs: list[list[Tree]] = []
    room: list[int] = []
    for tree in sorted(planned, key=lambda tree: -tree.tokens):
        place = next((place for place, left in enumerate(room) if tree.tokens <= left), None)
        if place is None:
            packs.append([])
            room.append(budget)
            place = len(packs) - 1
        packs[place].append(tree)
        room[place] -= tree.tokens
    return packs


def pack_evenly(planned: Sequence[Tree], budget: int, parts: int) -> list[list[Tree]]:
    """The same for `parts` processes that go through packs side by side: about equally full ones, in as few rounds as the budget allows.

    Longest tree first, each into the emptiest pack (Graham 1969). Fuller packs come first, so that those of one round are alike.
    """
    total, longest = sum(tree.tokens for tree in planned), max(tree.tokens for tree in planned)
    for rounds in range(-(-total // (budget * parts)), len(planned) + 1):
        packs: list[list[Tree]] = [[] for _ in range(rounds * parts)]
        loads = [0] * len(packs)
        for tree in sorted(planned, key=lambda tree: -tree.tokens):
            place = loads.index(min(loads))
            packs[place].append(tree)
            loads[place] += tree.tokens
        if max(loads) <= max(budget, longest):
            break
    return sorted(filter(None, packs), key=lambda pack: -sum(tree.tokens for tree in pack))


def pad_trees(planned: Sequence[Tree], budget: int) -> list[list[Tree]]:
    """The same for right-padded batches, where every sequence costs the longest one's tokens; a tree's members stay together."""
    packs: list[list[Tree]] = []
    width = count = 0
    for tree in sorted(planned, key=lambda tree: -tree.longest):
        if not packs or (count + len(tree.sequence_ids)) * width > budget:
            packs.append([])
            width, count = tree.longest, 0
        packs[-1].append(tree)
        count += len(tree.sequence_ids)
    return packs
