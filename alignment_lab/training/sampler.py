"""The order in which rows are seen: it depends on seed and epoch alone, whatever the workers."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import torch
from torch.utils.data import Sampler


class GlobalBatchSampler(Sampler[list[int]]):
    """The rows of each optimizer step: a seeded permutation per epoch of groups, rows that stay together.

    A global batch is a number of groups: a pair counts as one, whether a method takes it whole or in halves.
    Groups of several kinds (desirable and undesirable answers, say) are spread over the epoch in proportion,
    so that every batch holds about the same share of each; within a kind the order is random.
    """

    def __init__(
        self, groups: Sequence[Sequence[int]], kinds: Sequence[Hashable], global_batch: int, seed: int
    ) -> None:
        self.groups, self.kinds, self.global_batch, self.seed = groups, kinds, global_batch, seed
        self.epoch = self.first_batch = 0

    def __len__(self) -> int:
        """Global batches of an epoch."""
        return -(-len(self.groups) // self.global_batch)

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """The next iteration gives this epoch, from `first_batch` on."""
        self.epoch, self.first_batch = epoch, first_batch

    def order(self) -> list[int]:
        """All groups, in this epoch's order."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        shuffled = torch.randperm(len(self.groups), generator=generator).tolist()
        counts: dict[Hashable, int] = {}  # of groups of each kind so far
        ranks = []  # of each group among those of its kind
        for group in shuffled:
            kind = self.kinds[group]
            ranks.append(counts.get(kind, 0))
            counts[kind] = counts.get(kind, 0) + 1
        positions = [
            (rank + 0.5) / counts[self.kinds[group]] for rank, group in zip(ranks, shuffled, strict=True)
        ]
        by_position = sorted(zip(positions, shuffled, strict=True), key=lambda pair: pair[0])
        return [group for _, group in by_position]

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order()
        for start in range(self.first_batch * self.global_batch, len(order), self.global_batch):
            yield [row for group in order[start : start + self.global_batch] for row in self.groups[group]]
