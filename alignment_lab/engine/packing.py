"""Plans which sequences share a forward pass: equal prompts form a tree, trees are packed to a token budget.

A plan depends on sequences and budget alone: it is equal for every seed, process and machine. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..data.rows import IGNORE_INDEX


@dataclass(frozen=True)
class ScoredSequence:
    """One sequence to score: a prompt, its answer, and a label for each token of both.

    A label is the token itself where it is scored and IGNORE_INDEX elsewhere. None scores the answer alone.
    """

    prompt: list[int]
    answer: list[int]
    labels: list[int] | None = None

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)

    def scored_tokens(self) -> list[tuple[int, int]]:
        """(position, token) of each scored token.

        The first token of a sequence is never scored: nothing predicts it.
        """
        labels = self.labels or [IGNORE_INDEX] * len(self.prompt) + self.answer
        return [
            (position, label) for position, label in enumerate(labels) if position and label != IGNORE_INDEX
        ]


def without_padding(answer: list[int], padding: int | None) -> list[int]:
    """The answer without the padding tokens at its end; its first token stays.

    A reward model scores its last token that is not padding, as transformers' own forward does: where a
    tokenizer pads with its end of text, as many do, that is the token before the end.
    """
    end = next((index for index in range(len(answer), 1, -1) if answer[index - 1] != padding), 1)
    return answer[:end]


@dataclass
class Tree:
    """Sequences that share a prompt, as indices into the planned sequences."""

    prompt_length: int
    sequence_ids: list[int]
    num_tokens: int  # the prompt once, and every answer
    max_length: int  # of prompt and answer of the longest sequence


def build_trees(sequences: Sequence[ScoredSequence]) -> list[Tree]:
    """Group sequences by equal prompts; a sequence without a prompt is a tree of its own."""
    trees: dict[tuple[int, ...] | int, Tree] = {}
    for index, sequence in enumerate(sequences):
        key = tuple(sequence.prompt) or index
        tree = trees.setdefault(key, Tree(len(sequence.prompt), [], len(sequence.prompt), 0))
        tree.sequence_ids.append(index)
        tree.num_tokens += len(sequence.answer)
        tree.max_length = max(tree.max_length, len(sequence))
    return list(trees.values())


def pack_trees(trees: Sequence[Tree], max_tokens: int) -> list[list[Tree]]:
    """Packs of at most `max_tokens` by first fit, longest tree first.

    A tree that exceeds the budget is a pack alone.
    """
    packs: list[list[Tree]] = []
    room: list[int] = []  # tokens left in each pack
    for tree in sorted(trees, key=lambda tree: -tree.num_tokens):
        index = next((index for index, left in enumerate(room) if tree.num_tokens <= left), None)
        if index is None:
            packs.append([])
            room.append(max_tokens)
            index = len(packs) - 1
        packs[index].append(tree)
        room[index] -= tree.num_tokens
    return packs


def pack_evenly(trees: Sequence[Tree], max_tokens: int, world_size: int) -> list[list[Tree]]:
    """Packs for processes that compute side by side: equally full, in as few rounds as the budget allows.

    Longest tree first, each into the emptiest pack (Graham 1969). Packs are sorted by their tokens, fullest
    first, so that those of one round are alike.
    """
    total, longest = sum(tree.num_tokens for tree in trees), max(tree.num_tokens for tree in trees)
    for rounds in range(-(-total // (max_tokens * world_size)), len(trees) + 1):
        packs: list[list[Tree]] = [[] for _ in range(rounds * world_size)]
        loads = [0] * len(packs)
        for tree in sorted(trees, key=lambda tree: -tree.num_tokens):
            index = loads.index(min(loads))
            packs[index].append(tree)
            loads[index] += tree.num_tokens
        if max(loads) <= max(max_tokens, longest):
            break
    return sorted(filter(None, packs), key=lambda pack: -sum(tree.num_tokens for tree in pack))


def pad_trees(trees: Sequence[Tree], max_tokens: int) -> list[list[Tree]]:
    """Packs for right-padded batches, where every sequence costs as much as the longest.

    Trees are not split.
    """
    packs: list[list[Tree]] = []
    width = count = 0
    for tree in sorted(trees, key=lambda tree: -tree.max_length):
        if not packs or (count + len(tree.sequence_ids)) * width > max_tokens:
            packs.append([])
            width, count = tree.max_length, 0
        packs[-1].append(tree)
        count += len(tree.sequence_ids)
    return packs
