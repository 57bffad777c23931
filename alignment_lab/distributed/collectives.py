"""Which process of how many this is, and what processes tell each other. A process by itself pays nothing for any of it.

Reads what torchrun and Slurm leave in the environment. Knows no model; torch is imported only where there are several processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from .ranks import T, is_main_process, local_rank, world_size

COLLECTIVE_TIMEOUT = timedelta(
    hours=6
)  # processes wait for the one that tokenizes or asks the reference, however long that takes


def init_process_group(*, cpu: bool) -> None:
    """Meet the other processes, once: over gloo on processors, over NCCL (and gloo for what lies on processors) on accelerators."""
    import torch
    import torch.distributed as dist

    if world_size() == 1 or dist.is_initialized():
        return
    if not cpu:
        torch.cuda.set_device(local_rank())
    dist.init_process_group("gloo" if cpu else "cpu:gloo,cuda:nccl", timeout=COLLECTIVE_TIMEOUT)


def destroy_process_group() -> None:
    """Part from the others."""
    import torch.distributed as dist

    if world_size() > 1 and dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        all_gather(None)


def any_process(flag: bool) -> bool:
    """Whether it holds on any process."""
    if world_size() == 1:
        return flag
    import torch
    import torch.distributed as dist

    found = torch.tensor([flag], dtype=torch.int32)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found.item())


def broadcast(value: T) -> T:
    """What the first process has, on every one."""
    return all_gather(value)[0]


def all_gather(value: T) -> list[T]:
    """What every process has, by rank. For anything that pickle takes; what it moves lies on processors."""
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


@contextmanager
def main_process_first() -> Iterator[None]:
    """The first process does the block while the others wait, then they do it: what it left in a cache is there for them."""
    if not is_main_process():
        barrier()
    yield
    if is_main_process():
        barrier()
