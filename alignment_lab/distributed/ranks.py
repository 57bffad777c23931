"""Which process of how many this is, and what processes tell each other. A process by itself pays nothing for any of it.

Reads what torchrun and Slurm leave in the environment. Knows no model; torch is imported only where there are several processes.
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
    """Which of the processes this one is, from 0."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """Which of the processes of this machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


def world_size() -> int:
    """How many processes there are, over all machines."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main_process() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def split_between_processes(things: Sequence[T]) -> list[tuple[T, bool]]:
    """This process's share, every world-th thing, as many as any other process has: (thing, whether it counts).

    Where they do not come out even, the last one is done again by those who have none, and counts for nothing: what processes do together
    they must do equally often.
    """
    rounds = range(0, len(things), world_size())
    return [(things[min(start + rank(), len(things) - 1)], start + rank() < len(things)) for start in rounds]
