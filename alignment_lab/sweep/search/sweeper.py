"""hydra/sweeper=optuna: cells are chosen one after the other, by the results of the earlier ones.

Settings: conf/hydra/sweeper/optuna.yaml. The study lies in the sweep's folder; the same command resumes it,
first with a trial that was interrupted.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from ...config import Experiment, check_objective, objective_of, objective_value
from ...config.metrics import Scale, metric
from ...config.objective import default_objective
from ...runtime.command_line import typed_command
from ...runtime.errors import RunError, UserError
from ...runtime.files import exclusive_lock, relative_to_cwd, write_atomic, write_json
from ...runtime.library_internals import job_error
from ...runtime.redaction import redact_data
from ...runtime.run_directory import RunDirectory
from ..cell_names import exclude_from_names
from ..grid import Composer, compose_grid
from ..hydra_plugin import HydraPlugin
from .space import Space, parse_space

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

SAMPLERS = ("tpe", "random")
STUDY, RESULT, LOCK = "study.jsonl", "search.json", ".search.lock"  # in the sweep's folder
COUNTS = ("n_trials", "n_jobs", "n_startup_trials", "max_failures")  # settings that must be above 0

SearchPoint = dict[str, Any]  # a value for each key of the space


def is_search(settings: Any) -> bool:
    """Whether the settings of hydra.sweeper are those of a search."""
    return str(settings.get("_target_", "")).endswith(f".{OptunaSweeper.__name__}")


def prepare_search(config: DictConfig, config_name: str, check: Callable[[Experiment], list[str]]) -> None:
    """Check a search before anything starts, and fix the names of its folders in `config`.

    Its settings must be valid, the corners of its space must compose, and all must have the same objective;
    raises UserError.
    """
    _check_settings(config.hydra.sweeper)
    space = search_space(config)
    specs = compose_grid(space.corners(), config_name, check)
    for spec in specs:
        check_objective(spec, searching=True)
    objectives = {name for name, _ in map(objective_of, specs)}
    if len(objectives) > 1:
        raise UserError(
            f"eval.objective=null: the cells would be measured by {' and '.join(sorted(objectives))}; "
            "name one that all have."
        )
    tell_own_scale(specs)
    OptunaSweeper.register()
    # a cell's folder is named by what is searched
    exclude_from_names(config, sorted(text.partition("=")[0].lstrip("+~") for text in space.fixed))


def tell_own_scale(specs: Sequence[Experiment]) -> None:
    """Say so where the search compares cells by a number that each of them defines for itself."""
    name, _ = objective_of(specs[0])
    if metric(name).scale is Scale.method and len({repr(spec.method) for spec in specs}) > 1:
        common = default_objective(specs[0].method)
        hint = f"; {common} means the same in all of them" if metric(common).scale is Scale.common else ""
        Console().print(
            f"warning: eval.objective={name} is on the scale of each cell's method and options, which this "
            f"search varies, so that its best cell need not be the better model{hint}.",
            highlight=False,
            soft_wrap=True,
        )


def _check_settings(settings: Any) -> None:
    if find_spec("optuna") is None:
        raise UserError(
            "hydra/sweeper=optuna: the package optuna is not installed; "
            "pip install -e .[search] -c constraints.txt."
        )
    for key in COUNTS:
        if not isinstance(settings[key], int) or settings[key] < 1:
            raise UserError(f"hydra.sweeper.{key}={settings[key]}: must be a whole number above 0.")
    if settings.sampler not in SAMPLERS:
        raise UserError(f"hydra.sweeper.sampler={settings.sampler}: give one of {', '.join(SAMPLERS)}.")


def search_space(config: DictConfig, loader: Any = None) -> Space:
    """The space of a composed command: the parameters of a file, then the overrides of the command line."""
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    return parse_space(
        [*params, *config.hydra.overrides.task], loader or GlobalHydra.instance().config_loader()
    )


class OptunaSweeper(HydraPlugin, Sweeper):
    """The Hydra sweeper.

    Its settings have the names of hydra-optuna-sweeper, which needs an Optuna of 2022.
    """

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        """Hydra calls it before `sweep`."""
        self.config, self.loader, self.console = config, hydra_context.config_loader, Console()
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> float | None:
        """Run trials that the study asks for, n_trials in all; returns the best value."""
        self.folder = Path(self.config.hydra.sweep.dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.space = search_space(self.config, self.loader)
        self.spec = Composer(self.config.hydra.job.config_name)(self.space.corners()[0])
        self.objective, self.direction = objective_of(self.spec)
        busy = (
            f"{relative_to_cwd(self.folder)}: another command is searching there; "
            "wait for it to end, or give another directory."
        )
        with exclusive_lock(self.folder / LOCK, lambda: busy):
            settings = OmegaConf.create(redact_data(OmegaConf.to_container(self.config)))
            write_atomic(self.folder / "multirun.yaml", OmegaConf.to_yaml(settings))
            study = self._load_study()
            self._run_trials(study)
        return self._finish(study)

    def _run_trials(self, study: Study) -> None:
        failures = 0
        while batch := self._next_batch(study):
            finished = sum(trial.state.is_finished() for trial in study.trials)
            values = self._run([trial.params for trial in batch], finished)
            for trial, value in zip(batch, values, strict=True):
                self._tell(study, trial, value)
                failures = 0 if isinstance(value, float) else failures + 1
            self._write_result(study)
            if failures >= self.params["max_failures"]:
                raise RunError(
                    f"{relative_to_cwd(self.folder)}: {failures} trials failed in a row, "
                    f"the last one with: {values[-1]}"
                )

    def _next_batch(self, study: Study) -> list[Trial | FrozenTrial]:
        """Up to n_jobs trials: those that were interrupted, then new ones until there are n_trials."""
        from optuna.trial import TrialState

        batch: list[Trial | FrozenTrial] = [
            trial for trial in study.get_trials(deepcopy=False) if trial.state is TrialState.RUNNING
        ]
        while len(batch) < self.params["n_jobs"] and len(study.trials) < self.params["n_trials"]:
            batch.append(study.ask(self.space.distributions()))
        return batch[: self.params["n_jobs"]]

    def _tell(self, study: Study, trial: Trial | FrozenTrial, value: float | str) -> None:
        """Tell the study a trial's value, or that it failed, and print it."""
        from optuna.trial import TrialState

        if isinstance(value, float):
            study.tell(trial.number, value)
        else:
            study.tell(trial.number, state=TrialState.FAIL)
        self._print_trial(study, trial, value)

    def _run(self, points: Sequence[SearchPoint], index: int) -> list[float | str]:
        """The value of each point, or why it has none; equal points run once."""
        cells = list(dict.fromkeys(tuple(self.space.overrides(point)) for point in points))
        returned = self.launcher.launch([list(cell) for cell in cells], initial_job_idx=index)
        values = dict(zip(cells, map(self._value, cells, returned), strict=True))
        return [values[tuple(self.space.overrides(point))] for point in points]

    def _value(self, overrides: Sequence[str], returned: JobReturn) -> float | str:
        """The cell's objective, or a sentence about its failure."""
        if returned.status is not JobStatus.COMPLETED:
            return str(job_error(returned))
        value = returned.return_value
        if value is None:  # a launcher without results: the run's own report has it
            subdir = self.loader.load_sweep_config(self.config, list(overrides)).hydra.sweep.subdir
            value = objective_value(self.spec, RunDirectory(self.folder / subdir).report())
        if value is None or not math.isfinite(value):
            return f"{self.objective} is {'not in its report' if value is None else value}"
        return float(value)

    def _load_study(self) -> Study:
        """The study of this folder, new or resumed. Raises UserError where it is of another search."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        storage = self.params["storage"] or JournalStorage(JournalFileBackend(str(self.folder / STUDY)))
        study = optuna.create_study(
            study_name=self.params["study_name"] or "search",
            storage=storage,
            direction=self.direction.name,
            load_if_exists=True,
        )
        study.sampler = self._sampler(len(study.trials))
        self._check_same_search(study)
        return study

    def _check_same_search(self, study: Study) -> None:
        facts = redact_data(
            {**self.space.to_json(), "objective": self.objective, "direction": self.direction.name}
        )
        recorded = study.user_attrs.get("searched")
        if recorded is None:
            study.set_user_attr("searched", facts)
        elif recorded != facts:
            different = ", ".join(name for name in facts if recorded.get(name) != facts[name])
            raise UserError(
                f"{relative_to_cwd(self.folder)}: another search lies there ({different} differ); "
                "give another hydra.sweep.dir=DIRECTORY."
            )

    def _sampler(self, trials: int) -> BaseSampler:
        """Seeded; a search that is resumed after `trials` trials does not draw their numbers again."""
        from optuna.samplers import RandomSampler, TPESampler

        seed = self.params["seed"] + trials
        if self.params["sampler"] == "random":
            return RandomSampler(seed=seed)
        return TPESampler(
            seed=seed,
            n_startup_trials=self.params["n_startup_trials"],
            constant_liar=self.params["n_jobs"] > 1,
        )

    def _print_trial(self, study: Study, trial: Trial | FrozenTrial, value: float | str) -> None:
        result = f"{self.objective} {value:.4g}" if isinstance(value, float) else f"failed: {value}"
        point = " ".join(
            f"{key}={setting:.4g}" if isinstance(setting, float) else f"{key}={setting}"
            for key, setting in trial.params.items()
        )
        best = _best_trial(study)
        so_far = f"   best: {best.value:.4g} of trial {best.number}" if best else ""
        self.console.print(
            f"trial {trial.number}: {point}   {result}{so_far}", highlight=False, soft_wrap=True
        )

    def _write_result(self, study: Study) -> None:
        """Write search.json, which can be read without optuna."""
        best = _best_trial(study)
        trials = [
            {
                "number": trial.number,
                "state": trial.state.name.lower(),
                "value": trial.value,
                "params": trial.params,
            }
            for trial in study.trials
        ]
        result = {
            "objective": self.objective,
            "direction": self.direction.name,
            "best": best and best.number,
            "trials": trials,
        }
        write_json(self.folder / RESULT, result)

    def _finish(self, study: Study) -> float:
        """Print the best trial and return its value. Raises RunError where no trial has one."""
        self._write_result(study)
        best, folder = _best_trial(study), relative_to_cwd(self.folder)
        if best is None or best.value is None:
            raise RunError(f"{folder}: no trial has a result; the cells in it say why.")
        lines = (
            f"best of {len(study.trials)}: {self.objective} {best.value:.4g}, trial {best.number}",
            f"  {typed_command()} {' '.join(self.space.overrides(best.params))}",
            f"All of them: python -m alignment_lab.report {folder}",
        )
        for line in lines:
            self.console.print(line, highlight=False, soft_wrap=True)
        return float(best.value)


def _best_trial(study: Study) -> FrozenTrial | None:
    """The best trial; of equal ones the first. None where none has a value."""
    try:
        return study.best_trial
    except ValueError:
        return None
