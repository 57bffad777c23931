"""The final model: written as plain transformers loads it, and proved by loading it again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..checkpoints import verify
from ..checkpoints.weights import save_weights
from ..config import Adapter, Quantization, Sharding
from ..distributed import collectives, ranks
from ..models.generation_config import set_generation_config
from ..runtime.errors import Interrupted

if TYPE_CHECKING:
    from .context import TrainContext
    from .loop import Trainer

SAVED_TOLERANCE = {
    torch.float32: 1e-3,
    torch.bfloat16: 0.5,
}  # nats between two computations of the same weights


def save_model(trainer: Trainer, base: Path, folder: Path) -> None:
    """Weights, tokenizer, template and generation config; generation ends where training taught it to.

    Raises UserError where what was written is not what was trained, Interrupted, after a checkpoint, where
    signals did not let it be proved. What was gathered from several processes,
    or lies on the base model in `base`, is loaded by a fresh process too.
    """
    model, context = trainer.model, trainer.context
    set_generation_config(model, context.tokenizer)
    has_adapter = context.spec.parallel.adapter is not Adapter.none
    is_gathered = trainer.sharding in (Sharding.zero3, Sharding.fsdp) or has_adapter
    expected = verify.probe_outputs(model) if is_gathered else None
    trainer.backend.reshard()
    state = save_weights(model, folder)
    trainer.hooks.heartbeat()
    unproved = False
    if ranks.is_main_process():
        context.tokenizer.save_pretrained(folder)
        verify.check_files(folder, state.items())
        if expected is not None:
            options = _load_options(context, base)
            try:
                difference = verify.verify_saved(
                    folder, expected, options, tolerance=SAVED_TOLERANCE[context.dtype]
                )
                context.notify(
                    f"saved model: loaded again by a fresh process, log-probabilities within {difference:.2g}"
                )
            except Interrupted as reason:
                unproved, trainer.stop.signal = True, trainer.stop.signal or reason.signal
    if collectives.any_process(unproved):
        trainer.check_stop()


def _load_options(context: TrainContext, base: Path) -> verify.LoadOptions:
    """How a fresh process is to load it: as it was trained; in host memory unless 4 or 8 bits need the
    accelerator.
    """
    parallel = context.spec.parallel
    has_adapter = parallel.adapter is not Adapter.none
    return verify.LoadOptions(
        base=base if has_adapter else None,
        quantization=parallel.quantization,
        compute=context.dtype,
        dtype=context.dtype if has_adapter else torch.float32,
        device=context.device.type if parallel.quantization is not Quantization.none else "cpu",
        trust_remote_code=context.spec.model.trust_remote_code,
    )
