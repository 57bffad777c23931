"""In which order rows are seen: by seed and epoch alone, whatever the workers."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import torch
from torch.utils.data import Sampler


class GlobalBatchSampler(Sampler[list[int]]):
    """The rows of each optimizer step: a seeded permutation per epoch of units, rows that stay together.

    Units of several kinds (desirable and undesirable answers, say) are spread over the epoch in proportion, so that every batch holds
    about the same share of each; inside of a kind the order is random.
    """

    def __init__(
        self, units: Sequence[Sequence[int]], kinds: Sequence[Hashable], global_batch: int, seed: int
    ) -> None:
        self.units, self.kinds, self.global_batch, self.seed, self.epoch = units, kinds, global_batch, seed, 0
        self.rows = sum(map(len, units))

    def __len__(self) -> int:
        return -(-self.rows // self.global_batch)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each epoch, on resuming too."""
        self.epoch = epoch

    def order(self) -> list[int]:
        """All rows, in this epoch's order."""
        shuffled = torch.randperm(
            len(self.units), generator=torch.Generator().manual_seed(self.seed + self.epoch)
        ).tolist()
        ranks: dict[Hashable, int] = {}
        places = []
        for unit in shuffled:
            rank = ranks[self.kinds[unit]] = ranks.get(self.kinds[unit], -1) + 1
            places.append(rank)
        spread = [
            (rank + 0.5) / (ranks[self.kinds[unit]] + 1) for rank, unit in zip(places, shuffled, strict=True)
        ]
        return [
            row
            for _, unit in sorted(zip(spread, shuffled, strict=True), key=lambda pair: pair[0])
            for row in self.units[unit]
        ]

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order()
        for start in range(0, len(order), self.global_batch):
            yield order[start : start + self.global_batch]
