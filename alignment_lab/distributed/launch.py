"""The processes of one run on this machine, by torch's elastic launcher: nobody types a torchrun line.

Each of them reads the run's spec.yaml. When one dies the others are ended, and the error is that of the first
one.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..config import DeviceType, Parallel, Sharding
from ..runtime import hardware
from ..runtime.errors import EXIT_HUNG, HungError, Interrupted, UserError, WorkerError
from ..runtime.paths import pythonpath
from ..runtime.run_directory import RunDirectory
from ..runtime.signals import HANDLED_SIGNALS, Children, StopRequest
from .ranks import is_main_process
from .rendezvous import Rendezvous, find_rendezvous

if TYPE_CHECKING:
    from rich.console import Console
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
    from torch.distributed.launcher.api import LaunchConfig

POLL_SECONDS = 0.2
SHUTDOWN_TIMEOUT = 20  # seconds that processes have to exit when one of them has died
STATIC_RENDEZVOUS_TIMEOUT = 900  # seconds that nodes wait for each other
LAUNCHER_PID = "ALIGNMENT_LAB_LAUNCHER_PID"  # variable of the workers
USER_ERROR_PREFIX = (
    "UserError: "  # of the message of a worker that raised UserError: shown without a traceback
)


def local_process_count(parallel: Parallel) -> int:
    """How many processes this machine runs: parallel.processes, else one for each accelerator."""
    if parallel.sharding is Sharding.none:
        return 1
    if parallel.processes is not None:
        return parallel.processes
    return 1 if parallel.device is DeviceType.cpu else max(1, hardware.count_accelerators())


def is_run_leader(parallel: Parallel) -> bool:
    """Whether this process prints and writes for the run: rank 0, or the launcher on the first node."""
    return is_main_process() and find_rendezvous(parallel.nodes).node_rank == 0


def launch_workers(
    parallel: Parallel,
    run: RunDirectory,
    count: int,
    console: Console,
    stop: StopRequest,
    module: str = "alignment_lab.entrypoints.worker",
) -> None:
    """Start `count` processes of `python -m module RUN` and wait for them; signals are forwarded to them.

    Raises UserError, Interrupted, HungError, or WorkerError with the first failure's reason.
    """
    nodes = find_rendezvous(parallel.nodes)
    _check_address(nodes)
    each = f" on each of {nodes.num_nodes} nodes" if nodes.num_nodes > 1 else ""
    console.print(f"processes: {count}{each}, {parallel.sharding.name}", highlight=False, soft_wrap=True)
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    _silence_elastic_logs()
    previous_environment = dict(os.environ)
    os.environ |= _worker_environment(parallel, count)
    launch = elastic_launch(_launch_config(nodes, count), sys.executable)
    arguments = ("-m", module, str(run.path.absolute()))
    try:
        with stop.forward_to_children() as children:
            _call_in_thread(lambda: launch(*arguments), lambda: _deliver(children, run))
    except ChildFailedError as error:
        if stop.signal:
            raise _interrupted(stop.signal, run) from None
        failure = _first_failure(list(error.failures.values()))
        if failure.exitcode - 128 in HANDLED_SIGNALS:  # it was told to stop, and not through this process
            raise _interrupted(signal.Signals(failure.exitcode - 128), run) from None
        raise _worker_error(failure, nodes.node_rank * count, count * nodes.num_nodes, run) from None
    finally:  # the next cell of a sweep, in this process, is another run
        os.environ.clear()
        os.environ.update(previous_environment)
    if run.state().get("state") == "interrupted":  # its workers stopped in order
        raise Interrupted(stop.signal or signal.SIGTERM, run.state()["error"])


def _call_in_thread(call: Callable[[], object], poll: Callable[[], None]) -> None:
    """Wait for a call in another thread, and poll meanwhile.

    The launcher waits for other nodes in a call outside of Python, in which no signal would be heeded, and in
    the main thread it would replace the handlers of signals. An exception of `poll` leaves the thread behind.
    """
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="launcher", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        poll()
    for error in errors:
        raise error


def _deliver(children: Children, run: RunDirectory) -> None:
    """Send the workers a signal that came before they were started. Raises Interrupted where there are none
    yet: other nodes may be waited for.
    """
    if children.undelivered:
        children.send(children.undelivered)
    elif not children.seen:
        children.processes()
    if children.undelivered and not children.seen:
        raise _interrupted(children.undelivered, run)


def _interrupted(number: signal.Signals, run: RunDirectory) -> Interrupted:
    return Interrupted(number, f"interrupted by {number.name}; {_resume_hint(run)}")


def _check_address(nodes: Rendezvous) -> None:
    """Raise where MASTER_ADDR cannot be resolved: torch would retry for a quarter of an hour.

    UserError where the host is unknown, WorkerError where no name server answers.
    """
    try:
        socket.getaddrinfo(nodes.master_addr, nodes.master_port)
    except OSError as error:
        message = (
            f"MASTER_ADDR={nodes.master_addr}: {os.uname().nodename} cannot find that host ({error.strerror})"
        )
        if getattr(error, "errno", None) != socket.EAI_NONAME:
            raise WorkerError(f"{message}; try again.") from None
        raise UserError(
            f"{message}; export MASTER_ADDR=ADDRESS of the first node, under Slurm in a line of "
            "hydra.launcher.setup."
        ) from None


def _launch_config(nodes: Rendezvous, count: int) -> LaunchConfig:
    from torch.distributed.launcher.api import LaunchConfig

    single = nodes.num_nodes == 1
    return LaunchConfig(
        min_nodes=nodes.num_nodes,
        max_nodes=nodes.num_nodes,
        nproc_per_node=count,
        rdzv_backend="c10d" if single else "static",
        rdzv_endpoint=f"{nodes.master_addr}:{nodes.master_port}",
        rdzv_configs={} if single else {"rank": nodes.node_rank, "timeout": STATIC_RENDEZVOUS_TIMEOUT},
        # one machine need not know its own name
        local_addr=nodes.master_addr if single else None,
        run_id="alignment_lab",
        max_restarts=0,
        monitor_interval=0.2,
        shutdown_timeout=SHUTDOWN_TIMEOUT,
    )


def _worker_environment(parallel: Parallel, count: int) -> dict[str, str]:
    """What workers get: their part of the cores; on a CPU, no accelerator for DeepSpeed to find."""
    variables = {"PYTHONPATH": pythonpath(), LAUNCHER_PID: str(os.getpid())}
    if "OMP_NUM_THREADS" not in os.environ:
        variables["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // count))
    if parallel.nodes == 1 and sys.platform == "linux" and "GLOO_SOCKET_IFNAME" not in os.environ:
        variables["GLOO_SOCKET_IFNAME"] = "lo"  # gloo would look for an address of the machine's name
    if parallel.device is DeviceType.cpu or not hardware.count_accelerators():
        variables |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return variables


def _silence_elastic_logs() -> None:
    """The launcher's own log is not for the user: the error is one sentence."""
    for name in logging.root.manager.loggerDict:  # each logger has a level of its own
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _first_failure(failures: list[ProcessFailure]) -> ProcessFailure:
    """The failure that caused the others.

    A process that the watchdog ends makes the others fail; a process that is killed takes the others with it,
    and the launcher ends the rest by SIGTERM.
    """
    hung = [failure for failure in failures if failure.exitcode == EXIT_HUNG]
    if hung:
        return hung[0]
    killed = [failure for failure in failures if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM]
    return min(killed or failures, key=lambda failure: failure.timestamp)


def _resume_hint(run: RunDirectory) -> str:
    return f"the same command with hydra.run.dir={run.path} resumes from the newest checkpoint"


def _worker_error(failure: ProcessFailure, rank_offset: int, world_size: int, run: RunDirectory) -> Exception:
    """The error of the process that failed first; `rank_offset` is the rank of this node's first process."""
    message, traceback = _message_and_traceback(failure)
    if message.startswith(USER_ERROR_PREFIX):
        return UserError(message.removeprefix(USER_ERROR_PREFIX))
    if failure.exitcode == EXIT_HUNG:
        stacks = max(run.path.glob("stacks-*.txt"), key=lambda file: file.stat().st_mtime)
        return HungError(stacks.read_text().partition("\n")[0])  # the first line is the reason
    process = f"process {rank_offset + failure.local_rank} of {world_size}"
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        cause = "killed by a user, or by the system when memory ran out" if name == "SIGKILL" else "killed"
        return WorkerError(
            f"{process} was ended by {name} ({cause}), the others with it; {_resume_hint(run)}."
        )
    if message.startswith("To enable traceback"):  # it ended before it could record an error
        message = f"exit code {failure.exitcode}; its output above may say why"
    return WorkerError(f"{process} failed: {message}", traceback)


def _message_and_traceback(failure: ProcessFailure) -> tuple[str, str]:
    message: Any = failure.message  # text, or what the worker's error handler wrote
    if isinstance(message, str):
        return message, ""
    return message.get("message", ""), message.get("extraInfo", {}).get("py_callstack", "")
