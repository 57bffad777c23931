"""Which process of how many this is, and what processes tell each other. A process by itself pays nothing for any of it.

Reads what torchrun and Slurm leave in the environment. Knows no model; torch is imported only where there are several processes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..runtime.errors import UserError

PORTS = range(20000, 30000)  # of a rendezvous under Slurm, by the job's number


@dataclass(frozen=True)
class Rendezvous:
    """Where the processes of several machines meet, and which of the machines this is."""

    num_nodes: int
    node_rank: int
    master_addr: str
    master_port: int


def find_rendezvous(wanted: int, environment: Mapping[str, str] = os.environ) -> Rendezvous:
    """The machines of a run: NODE_RANK, MASTER_ADDR and MASTER_PORT, and what of them is not said from Slurm's job, where there is one.

    Raises UserError where that does not suffice.
    """
    if wanted == 1:
        return Rendezvous(1, 0, "127.0.0.1", 0)
    found = {
        name: environment[name] for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT") if name in environment
    }
    if "SLURM_JOB_ID" in environment and not {"NODE_RANK", "MASTER_ADDR"} <= found.keys():
        found = _from_slurm(wanted, environment) | found
    try:
        return Rendezvous(
            wanted, int(found["NODE_RANK"]), found["MASTER_ADDR"], int(found.get("MASTER_PORT", 29500))
        )
    except (KeyError, ValueError):
        raise UserError(
            f"parallel.nodes={wanted}: say where the machines meet: start the same command on each of them with NODE_RANK=0 to "
            f"{wanted - 1} and MASTER_ADDR=HOST of the first one in its environment, or run it under Slurm."
        ) from None


def _from_slurm(wanted: int, environment: Mapping[str, str]) -> dict[str, str]:
    """What a job's environment says of its machines; all of them work out the same."""
    granted = int(environment.get("SLURM_NNODES", 1))
    if granted != wanted:
        raise UserError(
            f"parallel.nodes={wanted}: this Slurm job has {granted}; ask it for {wanted}: sbatch --nodes={wanted}."
        )
    return {
        "NODE_RANK": environment.get("SLURM_NODEID", "0"),
        "MASTER_ADDR": first_host(environment["SLURM_JOB_NODELIST"]),
        "MASTER_PORT": str(PORTS[int(environment["SLURM_JOB_ID"]) % len(PORTS)]),
    }


def first_host(hosts: str) -> str:
    """The first name of Slurm's list, such as node[03-05,09]. In a container there is no scontrol to ask."""
    return re.sub(r"\[(\d+)[^]]*\]", r"\1", hosts).split(",")[0]
