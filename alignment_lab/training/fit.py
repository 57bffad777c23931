"""Train to the end, and save what came of it."""

from __future__ import annotations

from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback

from ..checkpoints import manifest, verify
from ..checkpoints.manager import CheckpointManager
from ..checkpoints.weights import save_weights
from ..config import Adapter, Experiment, Quantization, Sharding
from ..data.templates import stop_token_ids
from ..distributed import collectives, ranks
from ..runtime.errors import Interrupted
from ..runtime.run_directory import RunDirectory
from ..runtime.signals import StopRequest
from ..tracking import tracker_callbacks
from .callbacks import EvaluateEvery, LeaveWhenAsked, LogLastStep, MetricsLog, ShowSteps
from .nonfinite import NonfiniteGuard

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import TrainerCallback

    from .context import TrainContext

ROUNDING = {
    torch.float32: 1e-3,
    torch.bfloat16: 0.5,
}  # nats between what two computations of the same weights say


def fit(trainer: Any, spec: Experiment, run: RunDirectory, console: Console, stop: StopRequest) -> None:
    """Train to the end, from the newest checkpoint of this run where there is one. The first process alone shows and writes.

    Raises Interrupted after a signal, once a checkpoint is committed; RunError where a step cannot be taken or a checkpoint not be written.
    """

    def notice(sentence: str) -> None:
        console.print(sentence, highlight=False, soft_wrap=True)

    trainer.remove_callback(PrinterCallback)
    trainer.keeper = CheckpointManager(run, spec.run_id, spec.training.save_total_limit, notice)
    trainer.refuse = NonfiniteGuard(run, spec.training, notice)
    trainer.heed = lambda: leave(trainer, stop)
    leaving = LeaveWhenAsked(stop)
    callbacks: list[TrainerCallback] = [LogLastStep(), leaving]
    if ranks.is_main_process():
        callbacks += [
            MetricsLog(run, trainer.setting),
            *tracker_callbacks(spec, run, console),
            ShowSteps(console),
        ]
    if spec.training.eval_steps:
        callbacks.append(EvaluateEvery(spec.training.eval_steps))
    for callback in callbacks:
        trainer.add_callback(callback)
    found = trainer.keeper.find_latest()
    if found:
        notice(f"resuming from {found}")
    if ranks.is_main_process():
        run.truncate_metrics(manifest.step_of(found) if found else 0)
    trainer.train(resume_from_checkpoint=str(found) if found else None)
    if leaving.left:
        leave(trainer, stop)


def leave(trainer: Any, stop: StopRequest) -> None:
    """Where a signal came to any process: commit a checkpoint of the steps that were taken, raise Interrupted. All processes together."""
    if not collectives.any_process(stop.signal is not None):
        return
    number, where = stop.signal or Signals.SIGTERM, ""
    if stop.deferred:
        step = trainer.state.global_step
        if trainer.keeper.last_saved_step != step:
            trainer._save_checkpoint(trainer.model_wrapped, None)
        where = f" at step {step}; the same command with hydra.run.dir={trainer.keeper.run.path} goes on from checkpoint-{step}"
    raise Interrupted(number, f"interrupted by {number.name}{where}")


def save(trainer: Any, tokenizer: Any, base: Path, folder: Path) -> None:
    """Weights, tokenizer, template and generation config, as plain transformers loads them; generation ends where training taught it to.

    Raises UserError where what was written is not what was trained. What was gathered, or lies on a base, is loaded by a fresh process too.
    """
    model = trainer.model
    model.config.use_cache = True
    if model.can_generate():
        model.generation_config.eos_token_id = stop_token_ids(tokenizer)
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    dials = trainer.setting.spec.parallel
    gathered = trainer.sharding in (Sharding.zero3, Sharding.fsdp) or dials.adapter is not Adapter.none
    said = verify.probe_outputs(model) if gathered else None
    trainer.rest()
    state = save_weights(model, folder)
    trainer.beat()
    if ranks.is_main_process():
        tokenizer.save_pretrained(folder)
        verify.check_files(folder, state.items())
        if said is not None:
            apart = verify.verify_saved(
                folder, said, _loading(trainer.setting, base), tolerance=ROUNDING[trainer.setting.dtype]
            )
            said_so = f"saved model: loaded again by a fresh process, log-probabilities within {apart:.2g}"
            trainer.setting.console.print(said_so, highlight=False, soft_wrap=True)
    collectives.barrier()


def _loading(setting: TrainContext, base: Path) -> verify.LoadOptions:
    """How a fresh process is to load it: as it was trained; in this machine's memory unless 4 or 8 bits ask for the accelerator."""
    dials = setting.spec.parallel
    adapter = dials.adapter is not Adapter.none
    return verify.LoadOptions(
        base=base if adapter else None,
        quantization=dials.quantization,
        compute=setting.dtype,
        dtype=setting.dtype if adapter else torch.float32,
        device=setting.device.type if dials.quantization is not Quantization.none else "cpu",
        trust_remote_code=setting.spec.model.trust_remote_code,
    )
