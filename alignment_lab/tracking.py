"""Who is told of a run while it goes: metrics.jsonl and tensorboard always, wandb where the experiment says so."""

from __future__ import annotations

import hashlib
import netrc
import os
from typing import TYPE_CHECKING

from .spec import Experiment, to_plain

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import TrainerCallback

    from .artifacts import RunDirectory


def trackers(spec: Experiment, run: RunDirectory, console: Console) -> list[TrainerCallback]:
    """The callbacks that carry logged steps out of the run."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    found: list[TrainerCallback] = [TensorBoardCallback(SummaryWriter(log_dir=str(run.path / "tensorboard")))]
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
    wandb.init(
        project=spec.tracking.project,
        name=run.path.name,
        group=spec.tracking.group or run.path.parent.name,
        tags=[spec.method.name, spec.model.name, spec.data.name, *spec.tracking.tags],
        job_type=spec.action.name,
        config=to_plain(spec),
        id=f"{spec.run_id}-{hashlib.sha256(str(run.path.absolute()).encode()).hexdigest()[:6]}",
        resume="allow",
        dir=str(run.path),
        mode=mode,  # type: ignore[arg-type]
        settings=wandb.Settings(silent=True),
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
