"""Train to the end, and save what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PrinterCallback

from .. import checkpoint, cluster
from ..artifacts import RunDirectory
from ..data.tokenise import stop_ids
from ..spec import Experiment
from ..tracking import trackers
from .callbacks import CommitCheckpoint, EvaluateEvery, MetricsLog, ShowSteps
from .state import save_weights

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import TrainerCallback


def fit(trainer: Any, spec: Experiment, run: RunDirectory, console: Console) -> None:
    """Train to the end, from the newest checkpoint of this run where there is one. The first process alone shows and writes."""
    trainer.remove_callback(PrinterCallback)
    callbacks: list[TrainerCallback] = [CommitCheckpoint(run, spec.run_id, spec.training.save_total_limit)]
    if cluster.is_first():
        callbacks += [*trackers(spec, run, console), MetricsLog(run, trainer.setting.available / spec.training.global_batch), ShowSteps(console)]
    if spec.training.eval_steps:
        callbacks.append(EvaluateEvery(spec.training.eval_steps))
    for callback in callbacks:
        trainer.add_callback(callback)
    found = cluster.agreed(checkpoint.newest(run.checkpoints, spec.run_id) if cluster.is_first() else None)
    if found:
        console.print(f"resuming from {found}", highlight=False, soft_wrap=True)
    if cluster.is_first():
        run.rewind(checkpoint.step_of(found) if found else 0)
    trainer.train(resume_from_checkpoint=str(found) if found else None)


def save(trainer: Any, tokenizer: Any, folder: Path) -> None:
    """Weights, tokenizer, template and generation config, as plain transformers loads them; generation ends where training taught it to."""
    model = trainer.model
    model.config.use_cache = True
    if model.can_generate():
        model.generation_config.eos_token_id = stop_ids(tokenizer)
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    trainer.rest()
    save_weights(model, folder)
    if cluster.is_first():
        tokenizer.save_pretrained(folder)
