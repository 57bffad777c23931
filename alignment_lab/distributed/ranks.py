"""Which process this is, of how many, and which share of a list is its own.

Reads the environment that torchrun or the lab's launcher sets. Needs no torch and no process group.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def is_launched() -> bool:
    """Whether a launcher (ours, torchrun, accelerate) started this process as one of several."""
    return "RANK" in os.environ and world_size() > 1


def rank() -> int:
    """Index of this process among all processes, from 0."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """Index of this process among those of this machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


def world_size() -> int:
    """How many processes there are, over all machines."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main_process() -> bool:
    """Whether this is rank 0, the process that prints and writes."""
    return rank() == 0


def split_between_processes(items: Sequence[T]) -> list[tuple[T, bool]]:
    """This process's share as (item, is_own): every world-th item, and as many as any other process has.

    Processes must take part in collectives equally often. Where the items do not divide evenly, the processes
    without one repeat the last item, with is_own False: its results must not count.
    """
    first, size = rank(), world_size()
    starts = range(0, len(items), size)
    return [(items[min(start + first, len(items) - 1)], start + first < len(items)) for start in starts]
