"""hydra/launcher=slurm: the cells of `--multirun` are fixed and submitted to Slurm; the command returns.

Settings: conf/hydra/launcher/slurm.yaml.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import IO, Any

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

SLURM_POLL_SECONDS = 5.0  # between two looks at cells that are waited for


class SlurmLauncher(SweepLauncher):
    """Runs cells as tasks of a Slurm job array."""

    STATE_LABELS = {
        "finished": "finished, left alone",
        "running": "running, left alone",
        "queued": "pending, left alone",
        "interrupted": "interrupted, to be resumed from the newest checkpoint",
        "failed": "failed, to be retried",
        "missing": "not started yet",
    }

    @staticmethod
    def problems(spec: Experiment, settings: Any) -> list[str]:
        """What keeps a cell from running on any machine, or contradicts the settings of hydra.launcher."""
        sentences = problems.machine_independent_problems(spec)
        nodes = settings.nodes
        if nodes is not None and nodes != spec.parallel.nodes:
            sentences.append(
                f"hydra.launcher.nodes={nodes}: the cell has parallel.nodes={spec.parallel.nodes}; "
                "leave hydra.launcher.nodes null."
            )
        gpus, processes = settings.gpus_per_node, spec.parallel.processes
        if gpus is not None and processes and spec.parallel.device is not DeviceType.cpu and gpus < processes:
            sentences.append(
                f"parallel.processes={processes}: hydra.launcher.gpus_per_node={gpus}; "
                "set both to the same number, or leave either null."
            )
        return sentences

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit the cells that are due.

        The results say that cells were submitted, or with `wait` how they ended.
        """
        sweeper = str(self.config.hydra.sweeper.get("_target_", ""))
        if not self.params["wait"] and not sweeper.endswith("BasicSweeper"):
            raise UserError(
                "hydra/sweeper: it needs the result of each cell before it chooses the next: "
                "give hydra.launcher.wait=true with it."
            )
        began = time.monotonic()
        specs = [self.compose_cell(overrides) for overrides in job_overrides]
        with manifest.sweep_lock(self.path) as lock:
            sweep = manifest.read_sweep(self.path)
            self.record_command(sweep, self._resolved_settings(specs))
            submit.recover_job_ids(sweep)
            cells = self.register_cells(sweep, specs, job_overrides)
            due = self.queue_due_cells(sweep, specs, cells, cell_statuses(sweep))
            if due:
                self._submit(sweep, due, lock)
            sweep.write()
        path = relative_to_cwd(self.path.absolute())
        self.print_line(
            f"{time.monotonic() - began:.1f} s. Next: python -m alignment_lab.sweep status {path}"
        )
        wait = self.params["wait"]
        statuses = status_table.wait(sweep, self.console, SLURM_POLL_SECONDS) if wait else {}
        return self.job_returns(job_overrides, specs, cells, statuses)

    def _resolved_settings(self, specs: Sequence[Experiment]) -> dict[str, Any]:
        """The settings, with gpus_per_node by parallel.processes where it is null."""
        settings, parallel = dict(self.params), specs[0].parallel
        sharded = parallel.sharding is not Sharding.none and parallel.device is not DeviceType.cpu
        if settings["gpus_per_node"] is None and sharded:
            settings["gpus_per_node"] = parallel.processes
        return settings

    def _submit(self, sweep: Sweep, due: list[Cell], lock: IO[str]) -> None:
        code_digest = snapshot_code(sweep.path)
        earlier_code = {submission.code_digest for submission in sweep.submissions} - {code_digest}
        passes = shared_work.shared_passes([(cell.name, *cell.shared_keys) for cell in due])  # type: ignore[misc]
        submissions = submit.submit_cells(sweep, due, passes, code_digest, lock, canary=self.params["canary"])
        labels = {
            "prewarm": f"what cells share ({len(passes)} passes)",
            "canary": "a canary",
            "cells": "cells",
        }
        jobs = [f"{labels[submission.kind]}: job {submission.job_id}" for submission in submissions]
        at_once = min(len(due), self.params["array_parallelism"])
        self.print_line(f"  submitted: {', then '.join(jobs)}; {at_once} at once, {_resources(sweep)}")
        if earlier_code:
            self.print_line("  these run the present code, which differs from that of earlier cells")


def _resources(sweep: Sweep) -> str:
    """What each cell requests, for people."""
    settings = sweep.launcher_settings
    gpus = settings["gpus_per_node"]
    resources = [f"{gpus} accelerator{'s' if gpus != 1 else ''} a node" if gpus else "no accelerator"]
    if settings["cpus_per_task"]:
        resources.append(f"{settings['cpus_per_task']} processors")
    return ", ".join([*resources, f"time limit {settings['timeout_min']} min"])
