"""Which process of how many this is, and what processes tell each other. A process by itself pays nothing for any of it.

Reads what torchrun and Slurm leave in the environment. Knows no model; torch is imported only where there are several processes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from .errors import UserError

T = TypeVar("T")
PATIENCE = timedelta(hours=6)  # processes wait for the one that tokenises or asks the reference, however long that takes
DRIVER = Path("/proc/driver/nvidia/gpus")
PORTS = range(20000, 30000)  # of a rendezvous under Slurm, by the job's number


def launched() -> bool:
    """Whether a launcher (ours, torchrun, accelerate) started this process as one of several."""
    return "RANK" in os.environ and world() > 1


def rank() -> int:
    """Which of the processes this one is, from 0."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """Which of the processes of this machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


def world() -> int:
    """How many processes there are, over all machines."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def join(*, cpu: bool) -> None:
    """Meet the other processes, once: over gloo on processors, over NCCL (and gloo for what lies on processors) on accelerators."""
    import torch
    import torch.distributed as dist

    if world() == 1 or dist.is_initialized():
        return
    if not cpu:
        torch.cuda.set_device(local_rank())
    dist.init_process_group("gloo" if cpu else "cpu:gloo,cuda:nccl", timeout=PATIENCE)


def leave() -> None:
    """Part from the others."""
    import torch.distributed as dist

    if world() > 1 and dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every process is here."""
    if world() > 1:
        gathered(None)


def any_of(flag: bool) -> bool:
    """Whether it holds on any process."""
    if world() == 1:
        return flag
    import torch
    import torch.distributed as dist

    found = torch.tensor([flag], dtype=torch.int32)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found.item())


def agreed(value: T) -> T:
    """What the first process has, on every one."""
    return gathered(value)[0]


def gathered(value: T) -> list[T]:
    """What every process has, by rank. For anything that pickle takes; what it moves lies on processors."""
    if world() == 1:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value)
    return found


@contextmanager
def first_alone() -> Iterator[None]:
    """The first process does the block while the others wait, then they do it: what it left in a cache is there for them."""
    if not is_first():
        barrier()
    yield
    if is_first():
        barrier()


def even(things: Sequence[T]) -> list[tuple[T, bool]]:
    """This process's share, every world-th thing, as many as any other process has: (thing, whether it counts).

    Where they do not come out even, the last one is done again by those who have none, and counts for nothing: what processes do together
    they must do equally often.
    """
    rounds = range(0, len(things), world())
    return [(things[min(start + rank(), len(things) - 1)], start + rank() < len(things)) for start in rounds]


def visible_accelerators() -> int:
    """How many NVIDIA devices this process may use."""
    return len(visible_devices())


def visible_devices() -> list[str]:
    """Their names for CUDA_VISIBLE_DEVICES, told without torch: what that says, else what the driver lists."""
    said, present = os.environ.get("CUDA_VISIBLE_DEVICES"), len(_models())
    names = map(str, range(present)) if said is None else (one.strip() for one in said.split(","))
    return [one for one in names if one not in ("", "-1")][:present]


def accelerators() -> list[str]:
    """What the driver calls them, such as NVIDIA H100 80GB HBM3; one that is named otherwise than by its number: the first device's."""
    models = _models()
    return [models[int(one)] if one.isdigit() and int(one) < len(models) else models[0] for one in visible_devices()]


def _models() -> list[str]:
    """Of all devices of this machine, in the driver's order."""
    found = []
    for file in sorted(DRIVER.glob("*/information")):
        lines = file.read_text(errors="replace").splitlines()
        found += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")] or ["an accelerator"]
    return found


@dataclass(frozen=True)
class Machines:
    """Where the processes of several machines meet, and which of the machines this is."""

    count: int
    number: int
    address: str
    port: int


def machines(wanted: int, environment: Mapping[str, str] = os.environ) -> Machines:
    """The machines of a run: NODE_RANK, MASTER_ADDR and MASTER_PORT, and what of them is not said from Slurm's job, where there is one.

    Raises UserError where that does not suffice.
    """
    if wanted == 1:
        return Machines(1, 0, "127.0.0.1", 0)
    found = {name: environment[name] for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT") if name in environment}
    if "SLURM_JOB_ID" in environment and not {"NODE_RANK", "MASTER_ADDR"} <= found.keys():
        found = _of_slurm(wanted, environment) | found
    try:
        return Machines(wanted, int(found["NODE_RANK"]), found["MASTER_ADDR"], int(found.get("MASTER_PORT", 29500)))
    except (KeyError, ValueError):
        raise UserError(
            f"parallel.nodes={wanted}: say where the machines meet: start the same command on each of them with NODE_RANK=0 to "
            f"{wanted - 1} and MASTER_ADDR=HOST of the first one in its environment, or run it under Slurm."
        ) from None


def _of_slurm(wanted: int, environment: Mapping[str, str]) -> dict[str, str]:
    """What a job's environment says of its machines; all of them work out the same."""
    granted = int(environment.get("SLURM_NNODES", 1))
    if granted != wanted:
        raise UserError(f"parallel.nodes={wanted}: this Slurm job has {granted}; ask it for {wanted}: sbatch --nodes={wanted}.")
    return {
        "NODE_RANK": environment.get("SLURM_NODEID", "0"),
        "MASTER_ADDR": first_host(environment["SLURM_JOB_NODELIST"]),
        "MASTER_PORT": str(PORTS[int(environment["SLURM_JOB_ID"]) % len(PORTS)]),
    }


def first_host(hosts: str) -> str:
    """The first name of Slurm's list, such as node[03-05,09]. In a container there is no scontrol to ask."""
    return re.sub(r"\[(\d+)[^]]*\]", r"\1", hosts).split(",")[0]
