"""Weights & Biases: one run an experiment and directory, whatever the number of attempts, and offline where there is no key."""

from __future__ import annotations

import netrc
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Experiment, to_plain
from ..runtime.errors import UserError
from ..runtime.redaction import redact
from ..runtime.run_directory import RunDirectory
from .follower import NEVER, SAMPLE_COLUMNS, STEP, Tracker, place_of, sweep_of
from .wandb_file import last_step

if TYPE_CHECKING:
    from rich.console import Console

# What wandb would take of the command, the machine, git, the packages and the console by itself; provenance.json has it without secrets.
WITHHELD: dict[str, Any] = {
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "disable_git": True,
    "disable_code": True,
    "disable_job_creation": True,
    "save_code": False,
    "console": "off",
}
CHOICES = ("method", "model", "data", "parallel")
TAG_LIMIT, NAME_LIMIT = 64, 128  # characters that wandb takes
STAGED = "WANDB_DATA_DIR"  # where tables and artifacts wait for the sync: beside the run, not in a home that another machine has not


class Wandb(Tracker):
    """The steps carry their own number as wandb's, so that what an attempt takes again is never a step more."""

    def __init__(self, spec: Experiment, run: RunDirectory, console: Console) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
        if mode == "offline":
            sync = f"wandb sync {run.path}/wandb/offline-run-*"
            console.print(
                f"wandb: offline (no key, or WANDB_MODE=offline); send it later with  {sync}",
                highlight=False,
                soft_wrap=True,
            )
        (run.path / "wandb").mkdir(parents=True, exist_ok=True)
        folder = os.environ.get(STAGED, "")
        if not folder or folder.endswith("/wandb/staged"):  # that of the run before, in a sweep
            os.environ[STAGED] = str((run.path / "wandb" / "staged").absolute())
        earlier = sorted((run.path / "wandb").glob("*run-*"))  # attempts before
        try:
            self.run = wandb.init(
                **identity(spec, run), mode=mode, settings=wandb.Settings(silent=True, **WITHHELD)
            )  # type: ignore[arg-type]
        except wandb.errors.Error as error:
            said = " ".join(str(error).split())
            raise UserError(
                f"tracking.wandb=true: wandb could not begin ({said}); WANDB_MODE=offline keeps it here."
            ) from error
        self.run.define_metric(STEP)
        self.run.define_metric("*", step_metric=STEP)
        self.online, self.earlier = mode == "online", earlier

    def known(self) -> int:
        """What the service has, or what earlier attempts left here to be sent; a killed one may have left nothing of what it was told."""
        if self.online:
            return self.run.step - 1 if self.run.resumed else NEVER
        found = NEVER
        for folder in self.earlier:
            last = max((last_step(file) for file in folder.glob("*.wandb")), default=NEVER)
            if last == NEVER and folder.name.startswith("offline-"):
                shutil.rmtree(
                    folder, ignore_errors=True
                )  # nothing is in it, and a sync would stumble over it
            found = max(found, last)
        return found

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A row of the history."""
        self.run.log(dict(values), step=step)

    def conclude(self, numbers: Mapping[str, Any], samples: list[list[str]], page: Path) -> None:
        """The summary, the table of samples, the page as an artifact."""
        import wandb

        self.run.summary.update({name: value for name, value in numbers.items() if value is not None})
        if samples:
            self.run.summary["samples"] = wandb.Table(columns=list(SAMPLE_COLUMNS), data=samples)
        if page.exists():
            artifact = wandb.Artifact(
                f"report-{self.run.id}", type="report", description="the page of this run"
            )
            artifact.add_file(str(page), name=page.name)
            self.run.log_artifact(artifact)

    def close(self, state: str, *, failed: bool) -> None:
        """With the state, and an exit code that says how it went."""
        self.run.summary["state"] = state
        self.run.finish(exit_code=int(failed))


def identity(spec: Experiment, run: RunDirectory) -> dict[str, Any]:
    """Which run this is, and where it is found: by project, sweep, what differs in this cell, what was chosen."""
    plain = to_plain(spec)
    tracking = plain["tracking"]
    tags = [*(f"{group}={plain[group]['name']}" for group in CHOICES), *tracking["tags"]]
    return {
        "project": tracking["project"],
        "group": (tracking["group"] or sweep_of(run) or "")[:NAME_LIMIT] or None,
        "name": redact(run.path.name)[:NAME_LIMIT],
        "tags": list(dict.fromkeys(tag[:TAG_LIMIT] for tag in tags if tag)),
        "job_type": spec.action.name,
        "config": plain,
        "id": f"{spec.run_id}-{place_of(run)}",
        "resume": "allow",
        "dir": str(run.path),
    }


def has_key() -> bool:
    """Whether wandb could log in without asking: a prompt would hang a job that nobody watches."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
