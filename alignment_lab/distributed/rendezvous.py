"""Where the processes of several machines meet: from NODE_RANK and MASTER_ADDR, or from a Slurm job.

Reads environment variables. Opens no connection.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..runtime.errors import UserError

PORTS = range(20000, 30000)  # of a rendezvous under Slurm, chosen by the job id


@dataclass(frozen=True)
class Rendezvous:
    """Address at which the processes of all machines meet, and which of the machines this is."""

    num_nodes: int
    node_rank: int
    master_addr: str
    master_port: int


def find_rendezvous(num_nodes: int, environment: Mapping[str, str] = os.environ) -> Rendezvous:
    """The rendezvous of a run on `num_nodes` machines.

    NODE_RANK, MASTER_ADDR and MASTER_PORT where they are set; those that are not come from the Slurm job,
    where there is one. Raises UserError where that does not suffice.
    """
    if num_nodes == 1:
        return Rendezvous(1, 0, "127.0.0.1", 0)
    names = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    variables = {name: environment[name] for name in names if name in environment}
    if "SLURM_JOB_ID" in environment and not {"NODE_RANK", "MASTER_ADDR"} <= variables.keys():
        variables = _from_slurm(num_nodes, environment) | variables
    try:
        node_rank, master_addr = int(variables["NODE_RANK"]), variables["MASTER_ADDR"]
        return Rendezvous(num_nodes, node_rank, master_addr, int(variables.get("MASTER_PORT", 29500)))
    except (KeyError, ValueError):
        raise UserError(
            f"parallel.nodes={num_nodes}: say where the machines meet: start the same command on each "
            f"of them with NODE_RANK=0 to {num_nodes - 1} and MASTER_ADDR=HOST of the first one in its "
            "environment, or run it under Slurm."
        ) from None


def _from_slurm(num_nodes: int, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables from a Slurm job's environment; all of its nodes derive the same address."""
    granted = int(environment.get("SLURM_NNODES", 1))
    if granted != num_nodes:
        raise UserError(
            f"parallel.nodes={num_nodes}: this Slurm job has {granted}; ask it for {num_nodes}: "
            f"sbatch --nodes={num_nodes}."
        )
    return {
        "NODE_RANK": environment.get("SLURM_NODEID", "0"),
        "MASTER_ADDR": first_host(environment["SLURM_JOB_NODELIST"]),
        "MASTER_PORT": str(PORTS[int(environment["SLURM_JOB_ID"]) % len(PORTS)]),
    }


def first_host(node_list: str) -> str:
    """The first name of Slurm's list, such as node[03-05,09]. Parsed here: a container has no scontrol."""
    return re.sub(r"\[(\d+)[^]]*\]", r"\1", node_list).split(",")[0]
