"""hydra/launcher=slurm: what `--multirun` hands over is frozen, submitted and left to Slurm; the command returns.

Settings: conf/hydra/launcher/slurm.yaml. Hydra's launcher of a cluster waits for every job, composes again on the node from files that may
have changed, and forgets what it submitted: this one does none of that.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from .. import checks
from ..artifacts import RunDirectory, cache_directory, from_here
from ..compose import folder_name
from ..errors import RunError, UserError
from ..secrets import redacted
from ..spec import Device, Experiment, Sharding, differences, identity, reached, to_plain, to_yaml
from . import grid, live, manifest, shared, submit
from .frozen import frozen
from .manifest import Cell, Sweep
from .submit import Standing

SUBDIR = "${cell:${hydra.job.override_dirname}}"  # as conf/hydra/lab.yaml names cells
NAMED = 60  # characters of what is swept, in the sweep's name
POLL = 5.0  # seconds between two looks at cells that are waited for
composed: dict[tuple[str, ...], Experiment] = {}  # what the preflight has composed of this command's cells


def register() -> None:
    """Let Hydra make the launcher, which it would take from the package hydra_plugins alone."""
    ours, theirs = f"{SlurmLauncher.__module__}.{SlurmLauncher.__name__}", Plugins.is_in_toplevel_plugins_module
    Plugins.is_in_toplevel_plugins_module = staticmethod(lambda name: name == ours or theirs(name))
    Plugins.instance().register(SlurmLauncher)


def sweep_name(overrides: Any, params: Any = None) -> str:
    """`method=dpo,kto_beta=0.01,0.1-3f2a9c`: what is swept, and six digits of all that was typed, in whatever order."""
    words = sorted([*map(str, overrides or []), *(f"{key}={value}" for key, value in (params or {}).items())])
    parsed = OverridesParser.create().parse_overrides(words)
    swept = [word for word, one in zip(words, parsed, strict=True) if one.is_sweep_override()]
    named = folder_name("_".join(redacted(swept)) or "one")[:NAMED].rstrip("_")
    return f"{named}-{hashlib.sha256(chr(0).join(words).encode()).hexdigest()[:6]}"


def wrong(spec: Experiment, settings: Any) -> list[str]:
    """What keeps a cell from running on any machine, and from what it is asked of Slurm."""
    found = checks.anywhere(spec)
    nodes = settings.nodes
    if nodes is not None and nodes != spec.parallel.nodes:
        found.append(f"hydra.launcher.nodes={nodes}: the cell has parallel.nodes={spec.parallel.nodes}; leave hydra.launcher.nodes null.")
    gpus, count = settings.gpus_per_node, spec.parallel.processes
    if gpus is not None and count and spec.parallel.device is not Device.cpu and gpus < count:
        found.append(f"parallel.processes={count}: hydra.launcher.gpus_per_node={gpus}; ask for as many, or leave either null.")
    return found


class SlurmLauncher(Launcher):
    """Hydra's door to it: made by the sweeper, given the overrides of every cell."""

    def __init__(self, **params: Any) -> None:
        self.params: dict[str, Any] = {
            name: OmegaConf.to_container(one) if OmegaConf.is_config(one) else one for name, one in params.items()
        }

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        """Hydra's word before `launch`."""
        self.config, self.loader = config, hydra_context.config_loader

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit what has to be; what is returned says that the cells were taken, or with `wait` what became of them."""
        settings = self.config.hydra
        if not self.params["wait"] and not settings.sweeper.get("_target_", "").endswith("BasicSweeper"):
            raise UserError("hydra/sweeper: it learns from each cell before it chooses the next: give hydra.launcher.wait=true with it.")
        path, console = Path(str(settings.sweep.dir)), Console()
        began = time.monotonic()
        specs = [self._spec(list(overrides)) for overrides in job_overrides]
        with manifest.owned(path) as lock:
            sweep = manifest.read(path)
            sweep.command, sweep.cwd = redacted([sys.executable, *sys.argv]), str(Path.cwd())
            sweep.cache, sweep.launcher = str(cache_directory().absolute()), self._settings(specs)
            submit.find_lost(sweep)
            cells = self._add(sweep, specs, [list(one) for one in job_overrides])
            found = submit.standings(sweep)
            wanted = _distinct(cells)
            due = [cell for cell in wanted if not found[cell.name].alive and found[cell.name].state != "finished"]
            self._tell_standing(console, sweep, len(job_overrides), wanted, found)
            frozen_specs = dict(zip((cell.id for cell in cells), specs, strict=True))
            for cell in due:
                cell.run(path).queue(run_id=cell.id, spec=to_yaml(frozen_specs[cell.id]))
            if due:
                self._submit(console, sweep, due, lock)
            sweep.write()
        shown = from_here(path.absolute())
        console.print(
            f"{time.monotonic() - began:.1f} s. Next: python -m alignment_lab.sweep status {shown}", highlight=False, soft_wrap=True
        )
        ended = live.wait(sweep, console, POLL) if self.params["wait"] else {}
        return [_returned(*one, ended.get(one[2].name), path) for one in zip(job_overrides, specs, cells, strict=True)]

    def _spec(self, overrides: list[str]) -> Experiment:
        known = composed.get(tuple(overrides))
        return known or grid.Composer(self.config.hydra.job.config_name)(overrides)

    def _settings(self, specs: Sequence[Experiment]) -> dict[str, Any]:
        """The launcher's settings with what null stands for."""
        given = dict(self.params)
        dials = specs[0].parallel
        if given["gpus_per_node"] is None and dials.sharding is not Sharding.none and dials.device is not Device.cpu:
            given["gpus_per_node"] = dials.processes
        return given

    def _add(self, sweep: Sweep, specs: Sequence[Experiment], overrides: list[list[str]]) -> list[Cell]:
        """The cell of each experiment; those that differ in nothing that matters are one. Raises where a folder is another experiment's."""
        known = {cell.id: cell for cell in sweep.cells}
        names = {cell.name: cell.id for cell in sweep.cells}
        cells, others = [], {}
        for spec, words in zip(specs, overrides, strict=True):
            plain = to_plain(spec)
            run_id = identity(plain)
            if run_id not in known:
                name = self._name(words)
                run = RunDirectory(sweep.path / name)
                if names.get(name, run.state().get("id", run_id)) != run_id:
                    said = ", ".join(differences(run.spec(), plain)[:3]) or "another version of the lab wrote it"
                    others[f"{run.path}: {said}: that is another experiment; give another hydra.sweep.dir=DIRECTORY."] = 1
                    continue
                known[run_id] = Cell(name, redacted(words), run_id)
                names[name] = run_id
                sweep.cells.append(known[run_id])
            known[run_id].nodes, known[run_id].share = spec.parallel.nodes, list(shared.keys(spec, plain))
            cells.append(known[run_id])
        grid.refuse(others, len(specs))
        return cells

    def _name(self, words: list[str]) -> str:
        """The cell's folder, as hydra.sweep.subdir says."""
        raw = OmegaConf.to_container(self.config.hydra.sweep)
        if raw["subdir"] != SUBDIR:  # type: ignore[index, call-overload]
            return str(self.loader.load_sweep_config(self.config, words).hydra.sweep.subdir)
        naming = self.config.hydra.job.config.override_dirname
        unswept = [*naming.exclude_keys, *(key for line in self.config.hydra.overrides.hydra for key in _excluded(line))]
        parsed = OverridesParser.create(self.loader).parse_overrides(words)
        return folder_name(get_overrides_dirname(parsed, unswept, naming.item_sep, naming.kv_sep))

    def _tell_standing(self, console: Console, sweep: Sweep, asked: int, cells: list[Cell], found: dict[str, Standing]) -> None:
        """One line for each kind."""

        def say(text: str) -> None:
            console.print(text, highlight=False, soft_wrap=True)

        counts = {state: [cell for cell in cells if found[cell.name].state == state] for state in KINDS}
        same = f" ({asked} were asked for; those that differ in nothing that matters are one)" if asked != len(cells) else ""
        say(f"{from_here(sweep.path.absolute())}: {len(cells)} cell{'s' if len(cells) != 1 else ''}{same}")
        for state, what in KINDS.items():
            if counts[state]:
                say(f"  {len(counts[state])} {what}{_few(counts[state], found)}")

    def _submit(self, console: Console, sweep: Sweep, due: list[Cell], lock: Any) -> None:
        code = frozen(sweep.path)
        before = {one.code for one in sweep.submissions} - {code}
        work = shared.passes([(cell.name, *cell.share) for cell in due])  # type: ignore[misc]
        made = submit.submit(sweep, due, work, code, lock, canary=self.params["canary"])
        said = [f"{KIND[one.kind].format(len(work))}: job {one.job}" for one in made]
        limit = min(len(due), self.params["array_parallelism"])
        console.print(f"  submitted: {', then '.join(said)}; {limit} at once, {_resources(sweep)}", highlight=False, soft_wrap=True)
        if before:
            console.print("  these run the code as it is now, which is another than earlier cells had", highlight=False, soft_wrap=True)


KINDS = {
    "finished": "finished, left alone",
    "running": "running, left alone",
    "queued": "waiting in the queue, left alone",
    "interrupted": "cut off, to go on from the newest checkpoint",
    "failed": "failed, to be tried again",
    "missing": "new, or never begun",
}
KIND = {"share": "what cells share ({} passes)", "canary": "a canary", "cells": "cells"}


def _excluded(line: str) -> list[str]:
    """Keys of the line by which the preflight leaves what is not swept out of names."""
    key, _, value = line.partition("=")
    return value.strip("[]").split(",") if key == "hydra.job.config.override_dirname.exclude_keys" else []


def _distinct(cells: Sequence[Cell]) -> list[Cell]:
    return list({cell.id: cell for cell in cells}.values())


def _few(cells: list[Cell], found: dict[str, Standing]) -> str:
    """The first reasons, where there are any."""
    said = [f"{cell.name}: {found[cell.name].why}" for cell in cells if found[cell.name].state in ("failed", "interrupted")]
    return f" ({'; '.join(said[:3])}{'; ...' if len(said) > 3 else ''})" if said else ""


def _resources(sweep: Sweep) -> str:
    """What each cell asks for."""
    settings = sweep.launcher
    gpus = settings["gpus_per_node"]
    asked = [f"{gpus} accelerator{'s' if gpus != 1 else ''} a node" if gpus else "no accelerator"]
    asked += [f"{settings['cpus_per_task']} processors"] if settings["cpus_per_task"] else []
    return ", ".join([*asked, f"{settings['timeout_min']} min at a time"])


def _returned(overrides: Sequence[str], spec: Experiment, cell: Cell, ended: Standing | None, sweep: Path) -> JobReturn:
    """What Hydra gets of a cell: that it was submitted, or its objective, or why it has none."""
    found = JobReturn(overrides=redacted(list(overrides)), status=JobStatus.COMPLETED)
    if ended is not None and ended.state == "finished":
        found.return_value = reached(spec, cell.run(sweep).report())
    elif ended is not None:
        found.status, found.return_value = JobStatus.FAILED, RunError(f"{cell.name}: {ended.state}: {ended.why}")
    return found
