"""Weights & Biases: one run per experiment and directory, however many attempts; offline without a key."""

from __future__ import annotations

import netrc
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Experiment, to_plain
from ..runtime.errors import UserError
from ..runtime.redaction import redact
from ..runtime.run_directory import RunDirectory
from .forwarder import NO_STEP, SAMPLE_COLUMNS, STEP, Tracker, containing_sweep, path_hash
from .wandb_file import last_history_step

if TYPE_CHECKING:
    from rich.console import Console

# Keeps wandb from collecting the command, the machine, git, the packages and the console output by itself:
# provenance.json has them without secrets.
PRIVACY_SETTINGS: dict[str, Any] = {
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "disable_git": True,
    "disable_code": True,
    "disable_job_creation": True,
    "save_code": False,
    "console": "off",
}
MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")  # of WANDB_MODE; dryrun is offline
FREE_TEXT = (  # variables that hold anything
    "WANDB_API_KEY",
    "WANDB_CACHE_DIR",
    "WANDB_CONFIG_DIR",
    "WANDB_DATA_DIR",
    "WANDB_DIR",
    "WANDB_ENTITY",
    "WANDB_NAME",
    "WANDB_NOTES",
)
TAG_GROUPS = ("method", "model", "data", "parallel")
MAX_TAG_LENGTH, MAX_NAME_LENGTH = 64, 128  # wandb's limits
# Where tables and artifacts wait for `wandb sync`: beside the run, not in a home that another machine lacks.
STAGING_VARIABLE = "WANDB_DATA_DIR"
OFFLINE_ATTEMPT = re.compile(r"offline-run-\d{8}_\d{6}-[\w-]+")  # how wandb names the folder of one


class Wandb(Tracker):
    """Logs with the optimizer's step as wandb's step, so that repeated steps are not counted again."""

    def __init__(self, spec: Experiment, run: RunDirectory, console: Console) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
        if mode == "offline":
            sync = f"wandb sync {run.path}/wandb/offline-run-*"
            message = f"wandb: offline (no key, or WANDB_MODE=offline); upload it later with  {sync}"
            console.print(message, highlight=False, soft_wrap=True)
        folder = run.path / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        _set_staging_folder(folder)
        self.earlier_attempts = sorted(folder.glob("*run-*"))
        settings = wandb.Settings(silent=True, **PRIVACY_SETTINGS)
        try:
            self.run = wandb.init(**init_arguments(spec, run), mode=mode, settings=settings)  # type: ignore[arg-type]
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"tracking.wandb=true: wandb could not start ({reason}); WANDB_MODE=offline keeps it here."
            ) from error
        self.run.define_metric(STEP)
        self.run.define_metric("*", step_metric=STEP)
        self.online = mode == "online"

    def last_known_step(self) -> int:
        """The last step that the service has, or that earlier attempts left here to be uploaded.

        A killed attempt may have left less than it was given.
        """
        if self.online:
            return self.run.step - 1 if self.run.resumed else NO_STEP
        return max(map(_last_step_of_attempt, self.earlier_attempts), default=NO_STEP)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log a row of the history."""
        self.run.log(dict(values), step=step)

    def conclude(self, numbers: Mapping[str, Any], samples: list[list[str]], page: Path) -> None:
        """Log the summary, the table of samples, and the page as an artifact."""
        import wandb

        self.run.summary.update({name: value for name, value in numbers.items() if value is not None})
        if samples:
            self.run.summary["samples"] = wandb.Table(columns=list(SAMPLE_COLUMNS), data=samples)
        if page.exists():
            name, description = f"report-{self.run.id}", "the report page of this run"
            artifact = wandb.Artifact(name, type="report", description=description)
            artifact.add_file(str(page), name=page.name)
            self.run.log_artifact(artifact)

    def close(self, state: str, *, failed: bool) -> None:
        """Finish with the state, and an exit code that says whether the run failed."""
        self.run.summary["state"] = state
        self.run.finish(exit_code=int(failed))


def _set_staging_folder(folder: Path) -> None:
    """Stage uploads in the run's own folder, unless the user chose another one."""
    current = os.environ.get(STAGING_VARIABLE, "")
    if not current or current.endswith("/wandb/staged"):  # that of the previous run of a sweep
        os.environ[STAGING_VARIABLE] = str((folder / "staged").absolute())


def _last_step_of_attempt(folder: Path) -> int:
    """The last step in an attempt's folder. An empty offline one is removed: `wandb sync` fails on it."""
    step = max((last_history_step(file) for file in folder.glob("*.wandb")), default=NO_STEP)
    if step == NO_STEP and OFFLINE_ATTEMPT.fullmatch(folder.name):
        shutil.rmtree(folder, ignore_errors=True)
    return step


def init_arguments(spec: Experiment, run: RunDirectory) -> dict[str, Any]:
    """Arguments of `wandb.init` that identify the run and make it findable: project, sweep, name, tags."""
    config = to_plain(spec)
    tracking = config["tracking"]
    tags = [*(f"{group}={config[group]['name']}" for group in TAG_GROUPS), *tracking["tags"]]
    return {
        "project": tracking["project"],
        "group": (tracking["group"] or containing_sweep(run) or "")[:MAX_NAME_LENGTH] or None,
        "name": redact(run.path.name)[:MAX_NAME_LENGTH],
        "tags": list(dict.fromkeys(tag[:MAX_TAG_LENGTH] for tag in tags if tag)),
        "job_type": spec.action.name,
        "config": config,
        "id": f"{spec.run_id}-{path_hash(run)}",
        "resume": "allow",
        "dir": str(run.path),
    }


def variable_problems(environment: Mapping[str, str] = os.environ) -> Iterator[str]:
    """A sentence for each WANDB_ variable that wandb does not take. Imports it where that cannot be said
    without.
    """
    for name, value in sorted(environment.items()):
        if name.startswith("WANDB_") and name not in FREE_TEXT and (reason := _refusal(name, value)):
            yield f"tracking.wandb=true: {name}={redact(value)}: {reason}; change it, or unset {name}."


def _refusal(name: str, value: str) -> str | None:
    """Why wandb refuses the value of one variable; None where it takes it."""
    if name == "WANDB_MODE":
        return None if value in ("", *MODES) else f"must be one of {', '.join(MODES)}"
    import wandb

    try:
        wandb.Settings().update_from_env_vars({name: value})
    except (ValueError, wandb.errors.Error) as error:
        errors = getattr(error, "errors", None)  # pydantic's sentences, without its links
        reason = errors()[0]["msg"] if errors else " ".join(str(error).split())
        return redact(str(reason)).rstrip(".")
    return None


def has_key() -> bool:
    """Whether wandb can log in without a prompt, which would hang an unattended job."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
