"""hydra/sweeper=optuna: cells are chosen one after the other, by what the ones before came to.

Settings: conf/hydra/sweeper/optuna.yaml. The study is in the sweep's folder; the same command goes on, first with a cell that was cut off.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf, read_write
from rich.console import Console

from ...config import Experiment, check_objective, objective_of, objective_value
from ...runtime.errors import RunError, UserError
from ...runtime.files import exclusive_lock, relative_to_cwd, write_atomic, write_json
from ...runtime.redaction import redacted
from ...runtime.run_directory import RunDirectory
from ..grid import Composer, compose_grid
from ..hydra_plugin import HydraPlugin
from .space import Space, parse_space

SAMPLERS = ("tpe", "random")
STUDY, RESULT, LOCK = "study.jsonl", "search.json", ".search.lock"  # in the sweep's folder
COUNTS = ("n_trials", "n_jobs", "n_startup_trials", "max_failures")


def is_search(sweeper: Any) -> bool:
    """Whether the command asks for a search."""
    return str(sweeper.get("_target_", "")).endswith(f".{OptunaSweeper.__name__}")


def prepare_search(config: DictConfig, config_name: str, check: Callable[[Experiment], list[str]]) -> None:
    """Before anything starts: what is searched can be composed at its ends, is measured alike everywhere, and all settings make sense."""
    if find_spec("optuna") is None:
        raise UserError(
            "hydra/sweeper=optuna: the package optuna is not installed; pip install -e .[search] -c constraints.txt."
        )
    settings = config.hydra.sweeper
    for key in COUNTS:
        if not isinstance(settings[key], int) or settings[key] < 1:
            raise UserError(f"hydra.sweeper.{key}={settings[key]}: must be a whole number above 0.")
    if settings.sampler not in SAMPLERS:
        raise UserError(f"hydra.sweeper.sampler={settings.sampler}: there are: {', '.join(SAMPLERS)}.")
    found = search_space(config)
    specs = compose_grid(found.corners(), config_name, check)
    for spec in specs:
        check_objective(spec, searching=True)
    aims = dict(map(objective_of, specs))
    if len(aims) > 1:
        raise UserError(
            f"eval.objective=null: the cells would be measured by {' and '.join(sorted(aims))}; name one that all have."
        )
    OptunaSweeper.register()
    with read_write(config):  # a cell's folder is named by what is searched alone
        unswept = ",".join(sorted(word.partition("=")[0].lstrip("+~") for word in found.fixed))
        config.hydra.overrides.hydra.append(f"hydra.job.config.override_dirname.exclude_keys=[{unswept}]")
        place = QuotedString(
            str(config.hydra.sweep.dir), Quote.single
        ).with_quotes()  # a cell would name it by its own overrides
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir={place}")


def search_space(config: DictConfig, loader: Any = None) -> Space:
    """What a composed command searches: a file's parameters, then what was typed."""
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    return parse_space(
        [*params, *config.hydra.overrides.task], loader or GlobalHydra.instance().config_loader()
    )


class OptunaSweeper(HydraPlugin, Sweeper):
    """Hydra's door to it. Names of settings are those of hydra-optuna-sweeper, which asks for an optuna of 2022."""

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        """Hydra's word before `sweep`."""
        self.config, self.loader, self.console = config, hydra_context.config_loader, Console()
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> float | None:
        """Ask, run, tell, until there are as many trials as are wanted; gives the best value."""
        self.folder = Path(self.config.hydra.sweep.dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.space = search_space(self.config, self.loader)
        self.spec = Composer(self.config.hydra.job.config_name)(self.space.corners()[0])
        self.objective, self.way = objective_of(self.spec)
        busy = f"{relative_to_cwd(self.folder)}: another command searches there now; wait for it, or give another directory."
        with exclusive_lock(self.folder / LOCK, lambda: busy):
            write_atomic(
                self.folder / "multirun.yaml",
                OmegaConf.to_yaml(OmegaConf.create(redacted(OmegaConf.to_container(self.config)))),
            )
            study = self._study()
            self._search(study)
        return self._best(study)

    def _search(self, study: Any) -> None:
        from optuna.trial import TrialState

        failures, total = 0, self.params["n_trials"]
        while True:
            batch = [
                trial for trial in study.get_trials(deepcopy=False) if trial.state is TrialState.RUNNING
            ]  # they were cut off
            done = len(study.trials) - len(batch)
            while len(batch) < self.params["n_jobs"] and done + len(batch) < total:
                batch.append(study.ask(self.space.distributions()))
            batch = batch[: self.params["n_jobs"]]
            if not batch:
                return
            for trial, value in zip(batch, self._run([trial.params for trial in batch], done), strict=True):
                if isinstance(value, float):
                    study.tell(trial.number, value)
                    failures = 0
                else:
                    study.tell(trial.number, state=TrialState.FAIL)
                    failures += 1
                self._say(study, trial, value)
            self._write(study)
            if failures >= self.params["max_failures"]:
                raise RunError(
                    f"{relative_to_cwd(self.folder)}: {failures} trials failed in a row, the last one with: {value}"
                )

    def _run(self, points: Sequence[dict[str, Any]], index: int) -> list[float | str]:
        """What each point came to, or why nothing; a point that is there twice runs once."""
        cells = list({tuple(self.space.words(point)): point for point in points})
        returned = self.launcher.launch([list(cell) for cell in cells], initial_job_idx=index)
        values = dict(zip(cells, map(self._value, cells, returned), strict=True))
        return [values[tuple(self.space.words(point))] for point in points]

    def _value(self, cell: Sequence[str], returned: JobReturn) -> float | str:
        if returned.status is not JobStatus.COMPLETED:
            return str(returned._return_value)
        value = returned.return_value
        if value is None:  # a launcher that only waits: the run's own record says it
            subdir = self.loader.load_sweep_config(self.config, list(cell)).hydra.sweep.subdir
            value = objective_value(self.spec, RunDirectory(self.folder / subdir).report())
        if value is None or not math.isfinite(value):
            return f"{self.objective} is {'not in its report' if value is None else value}"
        return float(value)

    def _study(self) -> Any:
        """The study of this folder. Raises UserError where it searches something else."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        storage = self.params["storage"] or JournalStorage(JournalFileBackend(str(self.folder / STUDY)))
        study = optuna.create_study(
            study_name=self.params["study_name"] or "search",
            storage=storage,
            direction=self.way.name,
            load_if_exists=True,
        )
        study.sampler = self._sampler(len(study.trials))
        facts = redacted({**self.space.plain(), "objective": self.objective, "direction": self.way.name})
        known = study.user_attrs.get("searched")
        if known is None:
            study.set_user_attr("searched", facts)
        elif known != facts:
            other = ", ".join(name for name in facts if known.get(name) != facts[name])
            raise UserError(
                f"{relative_to_cwd(self.folder)}: another search lies there ({other} differ); give another hydra.sweep.dir=DIRECTORY."
            )
        return study

    def _sampler(self, begun: int) -> Any:
        """Seeded; where a search goes on, not with the numbers that it had already."""
        from optuna.samplers import RandomSampler, TPESampler

        seed = self.params["seed"] + begun
        if self.params["sampler"] == "random":
            return RandomSampler(seed=seed)
        return TPESampler(
            seed=seed,
            n_startup_trials=self.params["n_startup_trials"],
            constant_liar=self.params["n_jobs"] > 1,
        )

    def _say(self, study: Any, trial: Any, value: float | str) -> None:
        said = f"{self.objective} {value:.4g}" if isinstance(value, float) else f"failed: {value}"
        point = " ".join(
            f"{key}={one:.4g}" if isinstance(one, float) else f"{key}={one}"
            for key, one in trial.params.items()
        )
        best = _best(study)
        more = f"   best: {best.value:.4g} of trial {best.number}" if best else ""
        self.console.print(f"trial {trial.number}: {point}   {said}{more}", highlight=False, soft_wrap=True)

    def _write(self, study: Any) -> None:
        """search.json: for whoever has no optuna."""
        best = _best(study)
        trials = [
            {"number": one.number, "state": one.state.name.lower(), "value": one.value, "params": one.params}
            for one in study.trials
        ]
        found = {
            "objective": self.objective,
            "direction": self.way.name,
            "best": best and best.number,
            "trials": trials,
        }
        write_json(self.folder / RESULT, found)

    def _best(self, study: Any) -> float | None:
        self._write(study)
        best, place = _best(study), relative_to_cwd(self.folder)
        if best is None:
            raise RunError(f"{place}: no trial came to a result; the cells in it say why.")
        lines = (
            f"best of {len(study.trials)}: {self.objective} {best.value:.4g}, trial {best.number}",
            f"  python train.py {' '.join(self.space.words(best.params))}",
            f"All of them: python -m alignment_lab.report {place}",
        )
        for line in lines:
            self.console.print(line, highlight=False, soft_wrap=True)
        return float(best.value)


def _best(study: Any) -> Any:
    """The best trial; of equal ones the first. None where none has a value."""
    try:
        return study.best_trial
    except ValueError:
        return None
