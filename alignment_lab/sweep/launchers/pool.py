"""hydra/launcher=pool: a sweep on this machine, several cells at once, each a process with accelerators of its own.

Settings: conf/hydra/launcher/pool.yaml. A cell that dies, or fills its device, takes no other one with it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn

from ...config import DeviceType, Experiment, Sharding
from ...estimate import problems
from ...runtime import hardware
from ...runtime.errors import Interrupted, UserError
from ...runtime.run_directory import RunDirectory
from ...runtime.signals import StopRequest
from .. import manifest, status_table
from ..cell_status import CellStatus, local_statuses
from ..launcher import SweepLauncher
from ..manifest import Cell, Sweep
from ..snapshot import snapshot_code, snapshot_folder

POLL_SECONDS = 0.5  # seconds between two looks
LEAVE_TIMEOUT = 120.0  # seconds that cells of a command which was killed have to leave
WITH_PARENT = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>


def cell_log(run: RunDirectory) -> Path:
    """What a cell wrote."""
    return run.path / "output.log"


def devices_per_cell(spec: Experiment, asked: int | None, visible: int) -> int:
    """Accelerators of a cell: what is asked for, else one for each of its processes."""
    if spec.parallel.device is DeviceType.cpu or visible == 0:
        return 0
    if asked is not None or spec.parallel.sharding is Sharding.none:
        return asked or 1
    return spec.parallel.processes or visible


def split_devices(devices: Sequence[str], each: int, jobs: int | None) -> list[list[str]]:
    """The accelerators of every cell that may run at once: shares(["0", "1", "2"], 1, None) -> [["0"], ["1"], ["2"]].

    Of cells without accelerators one runs at a time, unless `jobs` says more. Raises UserError where not even one cell gets its share.
    """
    if each == 0:
        return [[]] * (jobs or 1)
    if each > len(devices):
        raise UserError(
            f"hydra.launcher.gpus={each}: this machine shows {len(devices)}; ask for as many, or leave it null."
        )
    found = [list(devices[start : start + each]) for start in range(0, len(devices) - each + 1, each)]
    return found[:jobs]


class PoolLauncher(SweepLauncher):
    """Cells as processes."""

    KINDS = {
        "finished": "finished, left alone",
        "interrupted": "cut off, going on from the newest checkpoint",
        "failed": "failed, tried again",
        "missing": "new, or never begun",
    }

    @staticmethod
    def wrong(spec: Experiment, settings: Any) -> list[str]:
        """What keeps a cell from running here."""
        if spec.parallel.nodes > 1:
            return [
                f"parallel.nodes={spec.parallel.nodes}: hydra/launcher=pool is of this machine alone; use hydra/launcher=slurm."
            ]
        count = devices_per_cell(spec, settings.gpus, hardware.count_accelerators())
        return problems.local_problems(spec, accelerators=count, at_once=1 if count else settings.n_jobs or 1)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run what has to be; gives what became of each."""
        specs = [self.spec(overrides) for overrides in job_overrides]
        devices = hardware.visible_device_ids()
        each = max(devices_per_cell(spec, self.params["gpus"], len(devices)) for spec in specs)
        places = split_devices(devices, each, self.params["n_jobs"])
        with manifest.sweep_lock(self.path):
            sweep = manifest.read_sweep(self.path)
            sweep.here = True
            self.described(sweep, dict(self.params))
            cells = self.cells(sweep, specs, job_overrides)
            _left(sweep)
            due = self.due(sweep, specs, cells, local_statuses(sweep, waiting=False))
            sweep.write()
            if due:
                self._tell_places(len(due), places)
                self._run(sweep, due, places)
            return self.returned(job_overrides, specs, cells, local_statuses(sweep, waiting=False))

    def _tell_places(self, due: int, places: list[list[str]]) -> None:
        at_once = min(due, len(places))
        with_what = (
            f" with accelerators {', '.join('+'.join(one) for one in places[:at_once])}" if places[0] else ""
        )
        self.say(
            f"  {at_once} at once{with_what}; what they write: {cell_log(RunDirectory(self.path / 'CELL'))}"
        )

    def _run(self, sweep: Sweep, due: list[Cell], places: list[list[str]]) -> None:
        stop = StopRequest()
        pool = Pool(sweep, due, places, stop, self.say)
        with stop.listen(), stop.forward_to_children():
            status_table.follow(sweep, self.console, POLL_SECONDS, pool.look)
        if stop.signal:
            raise Interrupted(
                stop.signal,
                f"interrupted by {stop.signal.name}; the same command goes on with the cells that have not finished",
            )


class Pool:
    """Starts cells where there is a place; one look does all that is due."""

    def __init__(
        self, sweep: Sweep, cells: Sequence[Cell], places: list[list[str]], stop: StopRequest, say: Any
    ) -> None:
        self.sweep, self.waiting, self.stop, self.say = sweep, list(cells), stop, say
        self.free, self.code = (
            list(places),
            str(snapshot_folder(sweep.path.absolute(), snapshot_code(sweep.path))),
        )
        self.threads = str(max(1, (os.cpu_count() or 1) // len(places)))
        self.going: dict[str, tuple[Cell, subprocess.Popen[bytes], list[str]]] = {}
        self.number = len(self.waiting)

    def look(self) -> dict[str, CellStatus]:
        """See who has ended, start who can; gives where all cells stand. After a signal nothing more starts."""
        for name, (cell, process, devices) in list(self.going.items()):
            if process.poll() is not None:
                del self.going[name]
                self.free.append(devices)
                self._tell(cell, process.returncode)
        while self.waiting and self.free and not self.stop.signal:
            cell, devices = self.waiting.pop(0), self.free.pop(0)
            self.going[cell.name] = (cell, self._start(cell, devices), devices)
        found = local_statuses(self.sweep, waiting=False)
        going = {
            name: CellStatus("running", here=True) for name in self.going
        }  # also one that has not come to its lock yet
        waiting = {cell.name: CellStatus("queued", here=not self.stop.signal) for cell in self.waiting}
        return {**found, **going, **waiting}

    def _start(self, cell: Cell, devices: list[str]) -> subprocess.Popen[bytes]:
        run = cell.run(self.sweep.path)
        theirs = {"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else {}
        path = os.pathsep.join(filter(None, [self.code, os.environ.get("PYTHONPATH")]))
        environment = {
            "OMP_NUM_THREADS": self.threads,
            **os.environ,
            **theirs,
            "PYTHONPATH": path,
            "PYTHONSAFEPATH": "1",
        }
        command = [
            sys.executable,
            "-u",
            "-m",
            "alignment_lab.entrypoints.sweep_cell",
            str(run.path.absolute()),
        ]
        with cell_log(run).open("ab") as file:
            return subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=_leaves_with_us,
            )

    def _tell(self, cell: Cell, code: int) -> None:
        """A line, and the truth in run.json where the process could not leave it."""
        ended = self.number - len(self.waiting) - len(self.going)
        run = cell.run(self.sweep.path)
        if run.state().get("state") in ("running", "queued") and code:
            why = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            run.fail(f"{why}; the end of {cell_log(run)} may say more", resumable=code < 0)
        state = run.state()
        said = f": {state['error']}" if state.get("error") else ""
        self.say(f"{ended}/{self.number} {cell.name}: {state.get('state')}{said}")


def _leaves_with_us() -> None:
    """In the child: when this command is killed, it is asked to leave, and commits a checkpoint. Linux alone knows how."""
    if sys.platform == "linux":
        LIBC.prctl(WITH_PARENT, signal.SIGTERM)


LIBC = ctypes.CDLL(None)  # before any fork


def _left(sweep: Sweep) -> None:
    """Wait for cells of an earlier command, which was killed: they are on their way out. Raises UserError where they are not."""
    end = time.monotonic() + LEAVE_TIMEOUT
    while going := [name for name, one in local_statuses(sweep, waiting=False).items() if one.alive]:
        if time.monotonic() > end:
            raise UserError(f"{sweep.path}: {', '.join(going)}: runs there now; wait for it, or end it.")
        time.sleep(POLL_SECONDS)
