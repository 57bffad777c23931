"""Who is told of a run while it goes: metrics.jsonl and tensorboard always, wandb where the experiment says so."""

from __future__ import annotations

import hashlib
import netrc
import os
from typing import TYPE_CHECKING, Any

from .secrets import redact
from .spec import Experiment, to_plain

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import TrainerCallback

    from .artifacts import RunDirectory

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


def trackers(spec: Experiment, run: RunDirectory, console: Console) -> list[TrainerCallback]:
    """The callbacks that carry logged steps out of the run."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    class Writer(SummaryWriter):
        """The callback gives it all arguments and the model's configuration as texts."""

        def add_text(self, tag: str, text_string: str, *more: Any, **options: Any) -> None:
            super().add_text(tag, redact(text_string), *more, **options)

    found: list[TrainerCallback] = [TensorBoardCallback(Writer(log_dir=str(run.path / "tensorboard")))]
    if spec.tracking.wandb:
        found.append(_wandb(spec, run, console))
    return found


def _wandb(spec: Experiment, run: RunDirectory, console: Console) -> TrainerCallback:
    """One wandb run an experiment and directory, so that an attempt after a crash continues it and a second run does not."""
    import wandb
    from transformers.integrations import WandbCallback

    mode = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
    if mode == "offline":
        sync = f"wandb sync {run.path}/wandb/offline-run-*"
        console.print(f"wandb: offline (no key, or WANDB_MODE=offline); send it later with  {sync}", highlight=False, soft_wrap=True)
    plain = to_plain(spec)
    tracking = plain["tracking"]
    wandb.init(
        project=tracking["project"],
        name=redact(run.path.name),
        group=tracking["group"] or redact(run.path.parent.name),
        tags=[*(plain[group]["name"] for group in ("method", "model", "data")), *tracking["tags"]],
        job_type=spec.action.name,
        config=plain,
        id=f"{spec.run_id}-{hashlib.sha256(str(run.path.absolute()).encode()).hexdigest()[:6]}",
        resume="allow",
        dir=str(run.path),
        mode=mode,  # type: ignore[arg-type]
        settings=wandb.Settings(silent=True, **WITHHELD),
    )
    return WandbCallback()


def has_key() -> bool:
    """Whether wandb could log in without asking: a prompt would hang a job that nobody watches."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def end_tracking(spec: Experiment, *, failed: bool) -> None:
    """Close the wandb run, with an exit code that says how it went."""
    if spec.tracking.wandb:
        import wandb

        wandb.finish(exit_code=int(failed))
