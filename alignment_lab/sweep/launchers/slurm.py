"""hydra/launcher=slurm: what `--multirun` hands over is frozen, submitted and left to Slurm; the command returns.

Settings: conf/hydra/launcher/slurm.yaml.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn

from ...config import DeviceType, Experiment, Sharding
from ...estimate import problems
from ...runtime.errors import UserError
from ...runtime.files import relative_to_cwd
from .. import manifest, shared_work, status_table
from ..cell_status import cell_statuses
from ..launcher import SweepLauncher
from ..manifest import Cell, Sweep
from ..snapshot import snapshot_code
from . import submit

POLL = 5.0  # seconds between two looks at cells that are waited for
KIND = {"share": "what cells share ({} passes)", "canary": "a canary", "cells": "cells"}


class SlurmLauncher(SweepLauncher):
    """Cells as jobs of an array."""

    KINDS = {
        "finished": "finished, left alone",
        "running": "running, left alone",
        "queued": "waiting in the queue, left alone",
        "interrupted": "cut off, to go on from the newest checkpoint",
        "failed": "failed, to be tried again",
        "missing": "new, or never begun",
    }

    @staticmethod
    def wrong(spec: Experiment, settings: Any) -> list[str]:
        """What keeps a cell from running on any machine, and from what it is asked of Slurm."""
        found = problems.problems_anywhere(spec)
        nodes = settings.nodes
        if nodes is not None and nodes != spec.parallel.nodes:
            said = f"hydra.launcher.nodes={nodes}: the cell has parallel.nodes={spec.parallel.nodes}"
            found.append(f"{said}; leave hydra.launcher.nodes null.")
        gpus, count = settings.gpus_per_node, spec.parallel.processes
        if gpus is not None and count and spec.parallel.device is not DeviceType.cpu and gpus < count:
            found.append(
                f"parallel.processes={count}: hydra.launcher.gpus_per_node={gpus}; ask for as many, or leave either null."
            )
        return found

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit what has to be; what is returned says that the cells were taken, or with `wait` what became of them."""
        sweeper = str(self.config.hydra.sweeper.get("_target_", ""))
        if not self.params["wait"] and not sweeper.endswith("BasicSweeper"):
            raise UserError(
                "hydra/sweeper: it learns from each cell before it chooses the next: give hydra.launcher.wait=true with it."
            )
        began = time.monotonic()
        specs = [self.spec(overrides) for overrides in job_overrides]
        with manifest.sweep_lock(self.path) as lock:
            sweep = manifest.read_sweep(self.path)
            self.described(sweep, self._settings(specs))
            submit.find_lost(sweep)
            cells = self.cells(sweep, specs, job_overrides)
            due = self.due(sweep, specs, cells, cell_statuses(sweep))
            if due:
                self._submit(sweep, due, lock)
            sweep.write()
        self.say(
            f"{time.monotonic() - began:.1f} s. Next: python -m alignment_lab.sweep status {relative_to_cwd(self.path.absolute())}"
        )
        ended = status_table.wait(sweep, self.console, POLL) if self.params["wait"] else {}
        return self.returned(job_overrides, specs, cells, ended)

    def _settings(self, specs: Sequence[Experiment]) -> dict[str, Any]:
        """The launcher's settings with what null stands for."""
        given = dict(self.params)
        dials = specs[0].parallel
        if (
            given["gpus_per_node"] is None
            and dials.sharding is not Sharding.none
            and dials.device is not DeviceType.cpu
        ):
            given["gpus_per_node"] = dials.processes
        return given

    def _submit(self, sweep: Sweep, due: list[Cell], lock: Any) -> None:
        code = snapshot_code(sweep.path)
        before = {one.code for one in sweep.submissions} - {code}
        work = shared_work.shared_passes([(cell.name, *cell.share) for cell in due])  # type: ignore[misc]
        made = submit.submit(sweep, due, work, code, lock, canary=self.params["canary"])
        said = [f"{KIND[one.kind].format(len(work))}: job {one.job}" for one in made]
        limit = min(len(due), self.params["array_parallelism"])
        self.say(f"  submitted: {', then '.join(said)}; {limit} at once, {_resources(sweep)}")
        if before:
            self.say("  these run the code as it is now, which is another than earlier cells had")


def _resources(sweep: Sweep) -> str:
    """What each cell asks for."""
    settings = sweep.launcher
    gpus = settings["gpus_per_node"]
    asked = [f"{gpus} accelerator{'s' if gpus != 1 else ''} a node" if gpus else "no accelerator"]
    asked += [f"{settings['cpus_per_task']} processors"] if settings["cpus_per_task"] else []
    return ", ".join([*asked, f"{settings['timeout_min']} min at a time"])
