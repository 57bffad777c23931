"""hydra/launcher=pool: a sweep on this machine, several cells at once, each with its own accelerators.

Settings: conf/hydra/launcher/pool.yaml. A cell that dies, or runs out of device memory, takes no other one
with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn

from ...config import DeviceType, Experiment, Sharding
from ...estimate import problems
from ...runtime import hardware
from ...runtime.errors import Interrupted, UserError
from ...runtime.run_directory import RunDirectory
from ...runtime.signals import StopRequest, terminate_with_parent
from .. import manifest, status_table
from ..cell_status import CellStatus, local_statuses
from ..launcher import SweepLauncher
from ..manifest import Cell, Sweep
from ..snapshot import snapshot_code, snapshot_folder

POOL_POLL_SECONDS = 0.5
ORPHAN_TIMEOUT = 120.0  # seconds that cells of a killed command get to exit


def cell_log(run: RunDirectory) -> Path:
    """The file with the output of a cell's process."""
    return run.path / "output.log"


def devices_per_cell(spec: Experiment, requested: int | None, visible: int) -> int:
    """Accelerators of a cell: as many as requested, else one for each of its processes; 0 on a CPU."""
    if spec.parallel.device is DeviceType.cpu or visible == 0:
        return 0
    if requested is not None or spec.parallel.sharding is Sharding.none:
        return requested or 1
    return spec.parallel.processes or visible


def split_devices(devices: Sequence[str], per_cell: int, max_cells: int | None) -> list[list[str]]:
    """The accelerators of each concurrent cell: (["0", "1", "2"], 1, None) -> [["0"], ["1"], ["2"]].

    Cells without accelerators run one at a time, unless `max_cells` says more. Raises UserError where there
    are too few accelerators for one cell.
    """
    if per_cell == 0:
        return [[]] * (max_cells or 1)
    if per_cell > len(devices):
        raise UserError(
            f"hydra.launcher.gpus={per_cell}: this machine shows {len(devices)}; "
            "set at most that many, or leave it null."
        )
    starts = range(0, len(devices) - per_cell + 1, per_cell)
    return [list(devices[start : start + per_cell]) for start in starts][:max_cells]


class PoolLauncher(SweepLauncher):
    """Runs cells as local processes."""

    STATE_LABELS = {
        "finished": "finished, left alone",
        "interrupted": "interrupted, resuming from the newest checkpoint",
        "failed": "failed, retrying",
        "missing": "not started yet",
    }

    @staticmethod
    def problems(spec: Experiment, settings: Any) -> list[str]:
        """What keeps a cell from running on this machine, a sentence each."""
        if spec.parallel.nodes > 1:
            return [
                f"parallel.nodes={spec.parallel.nodes}: hydra/launcher=pool runs cells on this machine "
                "alone; use hydra/launcher=slurm."
            ]
        count = devices_per_cell(spec, settings.gpus, hardware.count_accelerators())
        return problems.local_problems(spec, accelerators=count, at_once=1 if count else settings.n_jobs or 1)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the cells that are due; returns the result of every cell."""
        specs = [self.compose_cell(overrides) for overrides in job_overrides]
        devices = hardware.visible_device_ids()
        per_cell = max(devices_per_cell(spec, self.params["gpus"], len(devices)) for spec in specs)
        slots = split_devices(devices, per_cell, self.params["n_jobs"])
        with manifest.sweep_lock(self.path):
            sweep = manifest.read_sweep(self.path)
            sweep.is_local = True
            self.record_command(sweep, dict(self.params))
            cells = self.register_cells(sweep, specs, job_overrides)
            _wait_for_orphans(sweep)
            due = self.queue_due_cells(sweep, specs, cells, local_statuses(sweep, launcher_running=False))
            sweep.write()
            if due:
                self._print_slots(len(due), slots)
                self._run(sweep, due, slots)
            statuses = local_statuses(sweep, launcher_running=False)
            return self.job_returns(job_overrides, specs, cells, statuses)

    def _print_slots(self, due: int, slots: list[list[str]]) -> None:
        at_once = min(due, len(slots))
        devices = ", ".join("+".join(slot) for slot in slots[:at_once])
        log = cell_log(RunDirectory(self.path / "CELL"))
        self.print_line(
            f"  {at_once} at once{f' on accelerators {devices}' if slots[0] else ''}; output: {log}"
        )

    def _run(self, sweep: Sweep, due: list[Cell], slots: list[list[str]]) -> None:
        stop = StopRequest()
        pool = CellPool(sweep, due, slots, stop, self.print_line)
        with stop.listen(), stop.forward_to_children():
            status_table.follow(sweep, self.console, POOL_POLL_SECONDS, pool.poll)
        if stop.signal:
            raise Interrupted(
                stop.signal,
                f"interrupted by {stop.signal.name}; the same command resumes the cells that did not finish",
            )


class CellPool:
    """Processes of cells: one for each slot, which is a set of accelerators.

    `poll` does everything that is due.
    """

    def __init__(
        self,
        sweep: Sweep,
        cells: Sequence[Cell],
        slots: Sequence[list[str]],
        stop: StopRequest,
        print_line: Callable[[str], object],
    ) -> None:
        self.sweep, self.stop, self.print_line = sweep, stop, print_line
        self.waiting, self.total = list(cells), len(cells)
        self.free_slots = list(slots)
        self.running: dict[str, tuple[Cell, subprocess.Popen[bytes], list[str]]] = {}  # by name
        self.code_path = str(snapshot_folder(sweep.path.absolute(), snapshot_code(sweep.path)))
        self.threads = str(max(1, (os.cpu_count() or 1) // len(slots)))

    def poll(self) -> dict[str, CellStatus]:
        """Reap processes that ended and start waiting cells; returns all statuses.

        After a signal nothing is started.
        """
        for name, (cell, process, slot) in list(self.running.items()):
            if process.poll() is not None:
                del self.running[name]
                self.free_slots.append(slot)
                self._record_end(cell, process.returncode)
        while self.waiting and self.free_slots and not self.stop.signal:
            cell, slot = self.waiting.pop(0), self.free_slots.pop(0)
            self.running[cell.name] = (cell, self._start(cell, slot), slot)
        on_disk = local_statuses(self.sweep, launcher_running=False)
        running = {name: CellStatus("running", process_active=True) for name in self.running}
        queued = {
            cell.name: CellStatus("queued", process_active=not self.stop.signal) for cell in self.waiting
        }
        return {**on_disk, **running, **queued}  # a process may not have taken its lock yet

    def _start(self, cell: Cell, slot: list[str]) -> subprocess.Popen[bytes]:
        run = cell.run_directory(self.sweep.path)
        command = [
            sys.executable,
            "-u",
            "-m",
            "alignment_lab.entrypoints.sweep_cell",
            str(run.path.absolute()),
        ]
        environment = {
            "OMP_NUM_THREADS": self.threads,
            **os.environ,
            **({"CUDA_VISIBLE_DEVICES": ",".join(slot)} if slot else {}),
            "PYTHONPATH": os.pathsep.join(filter(None, [self.code_path, os.environ.get("PYTHONPATH")])),
            "PYTHONSAFEPATH": "1",
        }
        with cell_log(run).open("ab") as file:
            return subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=terminate_with_parent,
            )

    def _record_end(self, cell: Cell, exit_code: int) -> None:
        """Print one line; record in run.json that the process died, where it could not do so itself."""
        run = cell.run_directory(self.sweep.path)
        if run.state().get("state") in ("running", "queued") and exit_code:
            killed = exit_code < 0
            cause = f"ended by {signal.Signals(-exit_code).name}" if killed else f"exit code {exit_code}"
            run.fail(f"{cause}; the end of {cell_log(run)} may say more", resumable=killed)
        state = run.state()
        ended = self.total - len(self.waiting) - len(self.running)
        error = f": {state['error']}" if state.get("error") else ""
        self.print_line(f"{ended}/{self.total} {cell.name}: {state.get('state')}{error}")


def _wait_for_orphans(sweep: Sweep) -> None:
    """Wait for the cells of an earlier command that was killed: they are exiting.

    Raises UserError where they do not.
    """
    deadline = time.monotonic() + ORPHAN_TIMEOUT
    while running := [
        name for name, status in local_statuses(sweep, launcher_running=False).items() if status.is_active
    ]:
        if time.monotonic() > deadline:
            raise UserError(
                f"{sweep.path}: {', '.join(running)}: still running; wait for it to end, or end it."
            )
        time.sleep(POOL_POLL_SECONDS)
