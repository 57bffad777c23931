"""Lengths in bins of a round width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Bins:
    """`counts[i]` lengths lie in [i * width, (i + 1) * width)."""

    width: int
    counts: list[int]

    @property
    def end(self) -> int:
        """Where the last bin ends."""
        return self.width * len(self.counts)


def to_bins(lengths: Sequence[int], most: int) -> Bins:
    """At most `most` bins from 0, of a width of 1, 2 or 5 times a power of ten."""
    needed = (max(lengths, default=0) + 1) / most
    power = 10 ** max(0, math.floor(math.log10(max(1.0, needed))))
    width = next(step * power for step in (1, 2, 5, 10) if step * power >= needed)
    counts = [0] * (max(lengths, default=0) // width + 1)
    for length in lengths:
        counts[length // width] += 1
    return Bins(width, counts)


def describe(lengths: Sequence[int]) -> str:
    """`median 85, nine of ten up to 210, longest 512`."""
    if not lengths:
        return "none"
    ordered = sorted(lengths)
    median, ninth = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.9))
    return f"median {median:,}, nine of ten up to {ninth:,}, longest {ordered[-1]:,}"


def share_over(lengths: Sequence[int], limit: int) -> str:
    """`12 (3.1%) longer than 512`; empty where none is."""
    over = sum(length > limit for length in lengths)
    return f"{over:,} ({over / len(lengths):.1%}) longer than {limit:,}" if over else ""
