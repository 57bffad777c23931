"""The processes of one run on this machine, by torch's elastic launcher: nobody types a torchrun line.

Each of them reads the run's spec.yaml. When one dies the others are ended, and what is said is the first one's reason.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

from ..config import DeviceType, Parallel, Sharding
from ..runtime import hardware
from ..runtime.errors import EXIT_HUNG, HungError, Interrupted, UserError, WorkerError
from ..runtime.paths import pythonpath
from ..runtime.run_directory import RunDirectory
from ..runtime.signals import StopRequest
from .rendezvous import Rendezvous, find_rendezvous

if TYPE_CHECKING:
    from rich.console import Console

SHUTDOWN_TIMEOUT = 20  # seconds that processes have to end when one of them has died
USER = "UserError: "  # how a worker marks a user's mistake, for the user to read without a traceback


def local_process_count(parallel: Parallel) -> int:
    """How many processes this machine runs: as many as are asked for, else one for each accelerator, one on a CPU."""
    if parallel.sharding is Sharding.none:
        return 1
    if parallel.processes is not None:
        return parallel.processes
    return 1 if parallel.device is DeviceType.cpu else max(1, hardware.count_accelerators())


def launch_workers(
    parallel: Parallel,
    run: RunDirectory,
    count: int,
    console: Console,
    stop: StopRequest,
    door: str = "alignment_lab.entrypoints.worker",
) -> None:
    """Start `count` processes on the run and wait for them; they get the signals that come meanwhile.

    Raises UserError, Interrupted, HungError, or WorkerError with the first failure's reason.
    """
    machines = find_rendezvous(parallel.nodes)
    _resolves(machines)
    over = f" on each of {machines.num_nodes} machines" if machines.num_nodes > 1 else ""
    console.print(f"processes: {count}{over}, {parallel.sharding.name}", highlight=False, soft_wrap=True)
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    _quiet()
    before = dict(os.environ)
    os.environ |= _environment(parallel, count)
    try:
        with stop.forward_to_children():
            elastic_launch(_config(machines, count), sys.executable)("-m", door, str(run.path.absolute()))
    except ChildFailedError as error:
        if stop.signal:
            raise Interrupted(stop.signal, f"interrupted by {stop.signal.name}; {_goes_on(run)}") from None
        raise _told(_first(error.failures), machines.node_rank * count, count * machines.num_nodes, run) from None
    finally:  # the next cell of a sweep is another run
        os.environ.clear()
        os.environ.update(before)
    if run.state().get("state") == "interrupted":  # its workers ended in order
        raise Interrupted(stop.signal or signal.SIGTERM, run.state()["error"])


def _resolves(machines: Rendezvous) -> None:
    """Raises UserError where nobody knows the address, WorkerError where nobody can be asked: torch would try for a quarter of an hour."""
    try:
        socket.getaddrinfo(machines.master_addr, machines.master_port)
    except OSError as error:
        said = (
            f"MASTER_ADDR={machines.master_addr}: {os.uname().nodename} cannot find that host ({error.strerror})"
        )
        if getattr(error, "errno", None) != socket.EAI_NONAME:
            raise WorkerError(f"{said}; try again.") from None
        raise UserError(
            f"{said}; export MASTER_ADDR=ADDRESS of the first machine, under Slurm in a line of hydra.launcher.setup."
        ) from None


def _config(machines: Rendezvous, count: int) -> Any:
    from torch.distributed.launcher.api import LaunchConfig

    alone = machines.num_nodes == 1
    return LaunchConfig(
        min_nodes=machines.num_nodes,
        max_nodes=machines.num_nodes,
        nproc_per_node=count,
        rdzv_backend="c10d" if alone else "static",
        rdzv_endpoint="localhost:0" if alone else f"{machines.master_addr}:{machines.master_port}",
        rdzv_configs={} if alone else {"rank": machines.node_rank, "timeout": 900},
        run_id="alignment_lab",
        max_restarts=0,
        monitor_interval=0.2,
        signals_to_handle="SIGHUP,SIGQUIT",  # the others are ours
        shutdown_timeout=SHUTDOWN_TIMEOUT,
    )


def _environment(parallel: Parallel, count: int) -> dict[str, str]:
    """What workers find: their part of the processors, and where this machine has no accelerator, DeepSpeed told so."""
    cpu = parallel.device is DeviceType.cpu or not hardware.count_accelerators()
    threads = (
        {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))}
        if "OMP_NUM_THREADS" not in os.environ
        else {}
    )
    return {
        **threads,
        "PYTHONPATH": pythonpath(),
        **({"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""} if cpu else {}),
    }


def _quiet() -> None:
    """The launcher's own log is not for the user: what matters is said in a sentence."""
    for name in logging.root.manager.loggerDict:  # each has a level of its own
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _first(failures: dict[int, Any]) -> Any:
    """What went wrong first: a process that a signal ended takes the others with it, and the launcher ends what is left by SIGTERM."""
    found = list(failures.values())
    if hung := [one for one in found if one.exitcode == EXIT_HUNG]:
        return hung[0]  # the others miss it, and say so
    killed = [one for one in found if one.exitcode < 0 and one.exitcode != -signal.SIGTERM]
    return min(killed or found, key=lambda one: one.timestamp)


def _goes_on(run: RunDirectory) -> str:
    return f"the same command with hydra.run.dir={run.path} goes on from the newest checkpoint"


def _told(failure: Any, before: int, world: int, run: RunDirectory) -> Exception:
    """The error of the first process that failed, as the user should read it; `before`: processes of the machines before this one."""
    said = failure.message if isinstance(failure.message, str) else failure.message.get("message", "")
    if said.startswith(USER):
        return UserError(said.removeprefix(USER))
    if failure.exitcode == EXIT_HUNG:
        stacks = max(
            run.path.glob("stacks-*.txt"), key=lambda file: file.stat().st_mtime
        )  # its first line says why
        return HungError(stacks.read_text().partition("\n")[0])
    who = f"process {before + failure.local_rank} of {world}"
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        why = "killed by hand, or by the system for want of memory" if name == "SIGKILL" else "killed"
        return WorkerError(f"{who} was ended by {name} ({why}), the others with it; {_goes_on(run)}.")
    if said.startswith("To enable traceback"):  # it ended before it could leave a reason
        said = f"exit code {failure.exitcode}, and what it said stands above"
    details = (
        failure.message.get("extraInfo", {}).get("py_callstack", "")
        if isinstance(failure.message, dict)
        else ""
    )
    return WorkerError(f"{who} failed: {said}", details)
