"""Train to the end, and save what came of it."""

from __future__ import annotations

from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback

from .. import checkpoint, cluster, saved
from ..artifacts import RunDirectory
from ..data.tokenise import stop_ids
from ..errors import Interrupted
from ..signals import Stop
from ..spec import Adapter, Experiment, Quantisation, Sharding
from ..tracking import trackers
from .callbacks import EvaluateEvery, LeaveWhenAsked, MetricsLog, ShowSteps
from .keeper import Keeper
from .refusals import Refusals
from .state import save_weights

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import TrainerCallback

    from ..method.setting import Setting

ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.5}  # nats between what two computations of the same weights say


def fit(trainer: Any, spec: Experiment, run: RunDirectory, console: Console, stop: Stop) -> None:
    """Train to the end, from the newest checkpoint of this run where there is one. The first process alone shows and writes.

    Raises Interrupted after a signal, once a checkpoint is committed; RunError where a step cannot be taken or a checkpoint not be written.
    """

    def notice(sentence: str) -> None:
        console.print(sentence, highlight=False, soft_wrap=True)

    trainer.remove_callback(PrinterCallback)
    trainer.keeper = Keeper(run, spec.run_id, spec.training.save_total_limit, notice)
    trainer.refuse = Refusals(run, spec.training, notice)
    trainer.heed = lambda: leave(trainer, stop)
    leaving = LeaveWhenAsked(stop)
    callbacks: list[TrainerCallback] = [leaving]
    if cluster.is_first():
        callbacks += [
            MetricsLog(run, trainer.setting),
            *trackers(spec, run, console),
            ShowSteps(console),
        ]
    if spec.training.eval_steps:
        callbacks.append(EvaluateEvery(spec.training.eval_steps))
    for callback in callbacks:
        trainer.add_callback(callback)
    found = trainer.keeper.find()
    if found:
        notice(f"resuming from {found}")
    if cluster.is_first():
        run.rewind(checkpoint.step_of(found) if found else 0)
    trainer.train(resume_from_checkpoint=str(found) if found else None)
    if leaving.left:
        leave(trainer, stop)


def leave(trainer: Any, stop: Stop) -> None:
    """Where a signal came to any process: commit a checkpoint of the steps that were taken, raise Interrupted. All processes together."""
    if not cluster.any_of(stop.asked is not None):
        return
    number, where = stop.asked or Signals.SIGTERM, ""
    if stop.patient:
        step = trainer.state.global_step
        if trainer.keeper.saved != step:
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
        model.generation_config.eos_token_id = stop_ids(tokenizer)
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    dials = trainer.setting.spec.parallel
    gathered = trainer.sharding in (Sharding.zero3, Sharding.fsdp) or dials.adapter is not Adapter.none
    said = saved.probe(model) if gathered else None
    trainer.rest()
    state = save_weights(model, folder)
    trainer.beat()
    if cluster.is_first():
        tokenizer.save_pretrained(folder)
        saved.check_files(folder, state.items())
        if said is not None:
            apart = saved.verify(folder, said, _loading(trainer.setting, base), tolerance=ROUNDING[trainer.setting.dtype])
            said_so = f"saved model: loaded again by a fresh process, log-probabilities within {apart:.2g}"
            trainer.setting.console.print(said_so, highlight=False, soft_wrap=True)
    cluster.barrier()


def _loading(setting: Setting, base: Path) -> saved.Loading:
    """How a fresh process is to load it: as it was trained; in this machine's memory unless 4 or 8 bits ask for the accelerator."""
    dials = setting.spec.parallel
    adapter = dials.adapter is not Adapter.none
    return saved.Loading(
        base=base if adapter else None,
        quantisation=dials.quantisation,
        compute=setting.dtype,
        dtype=setting.dtype if adapter else torch.float32,
        device=setting.device.type if dials.quantisation is not Quantisation.none else "cpu",
        trust_remote_code=setting.spec.model.trust_remote_code,
    )
