"""What processes tell each other: process group, barrier, broadcast, gather.

A single process pays nothing: torch is imported only where there are several. Knows no model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from ..runtime.signals import default_actions
from .ranks import is_main_process, local_rank, world_size

T = TypeVar("T")

# long: all processes wait for rank 0 while it tokenizes or computes the reference
COLLECTIVE_TIMEOUT = timedelta(hours=6)


def init_process_group(*, cpu: bool) -> None:
    """Join the process group, once: gloo on CPUs, NCCL (and gloo for CPU tensors) on accelerators."""
    import torch
    import torch.distributed as dist

    if world_size() == 1 or dist.is_initialized():
        return
    if not cpu:
        torch.cuda.set_device(local_rank())
    with default_actions():
        dist.init_process_group("gloo" if cpu else "cpu:gloo,cuda:nccl", timeout=COLLECTIVE_TIMEOUT)


def destroy_process_group() -> None:
    """Leave the process group."""
    import torch.distributed as dist

    if world_size() > 1 and dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        all_gather(None)


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process."""
    if world_size() == 1:
        return flag
    import torch
    import torch.distributed as dist

    flags = torch.tensor([flag], dtype=torch.int32)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags.item())


def broadcast(value: T) -> T:
    """The value of rank 0, on every process."""
    return all_gather(value)[0]


def all_gather(value: T) -> list[T]:
    """The values of all processes, by rank. For anything that can be pickled; tensors must be on the CPU."""
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    values: list[T] = [value] * world_size()
    dist.all_gather_object(values, value)
    return values


@contextmanager
def main_process_first() -> Iterator[None]:
    """Run the block on rank 0 while the others wait, then on them: they find what rank 0 left in a cache."""
    if not is_main_process():
        barrier()
    yield
    if is_main_process():
        barrier()
