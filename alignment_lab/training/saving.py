"""The final model: written as plain transformers loads it, and proved by loading it again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from ..checkpoints import verify
from ..checkpoints.weights import full_state, meta_state, saved_state, write_weights
from ..config import Adapter, Quantization, Sharding
from ..distributed import collectives, ranks
from ..estimate.oom import OOM_PHRASES
from ..models.generation_config import set_generation_config
from ..runtime.disk import disk_is_full
from ..runtime.errors import Interrupted, UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from .context import TrainContext
    from .loop import Trainer

SAVED_TOLERANCE = {
    torch.float32: 1e-3,
    torch.bfloat16: 0.5,
}  # nats between two computations of the same weights
MAX_REASON = 300  # characters of a library's message


def save_model(trainer: Trainer, base: Path, folder: Path) -> str | None:
    """Weights, tokenizer, template and generation config; generation ends where training taught it to.

    Gives None, or one sentence that says why what was written is not proved to be what was trained; its
    weights are in `folder` all the same. What was gathered from several processes, lies on the base model in
    `base`, or has other names in files than in memory, is loaded by a fresh process too. Every process
    together. Raises Interrupted, after a checkpoint, where signals did not let it be proved.
    """
    model, context = trainer.model, trainer.context
    has_adapter = context.spec.parallel.adapter is not Adapter.none
    is_gathered = trainer.sharding in (Sharding.zero3, Sharding.fsdp) or has_adapter
    must_load = is_gathered or _is_renamed(model)
    expected = verify.probe_outputs(model) if must_load else None
    trainer.backend.reshard()
    state = full_state(model)
    trainer.hooks.heartbeat()
    problem, unproved = None, False
    if ranks.is_main_process():
        try:
            _save_and_prove(context, base, folder, state, expected)
        except Interrupted as reason:
            unproved, trainer.stop.signal = True, trainer.stop.signal or reason.signal
        except Exception as error:
            if disk_is_full(error) or any(phrase in str(error) for phrase in OOM_PHRASES):
                raise
            problem = _describe(error)
            _write_bare_weights(folder, saved_state(model, state))
    if collectives.any_process(unproved):
        trainer.check_stop()
    return collectives.broadcast(problem)


def _save_and_prove(
    context: TrainContext, base: Path, folder: Path, state: dict[str, Tensor], expected: Tensor | None
) -> None:
    """For the main process. Raises UserError where what was written is not what was trained, and whatever
    libraries raise that cannot write it.
    """
    model = context.model
    set_generation_config(model, context.tokenizer)
    write_weights(model, state, folder)
    context.tokenizer.save_pretrained(folder)
    verify.check_files(folder, saved_state(model, state).items())
    if expected is not None:
        options = _load_options(context, base)
        tolerance = SAVED_TOLERANCE[context.dtype]
        difference = verify.verify_saved(folder, expected, options, tolerance=tolerance)
        context.notify(
            f"saved model: loaded again by a fresh process, log-probabilities within {difference:.2g}"
        )


def rehearse_save(context: TrainContext, folder: Path) -> None:
    """Save the untouched model once: what could not be saved is said before the first step, not after the
    last.

    Configs, tokenizer and an adapter are written to `folder` for real, and deleted again. Full weights are
    not: plain transformers must take the names and shapes that a save gives them. Every process together.
    Raises UserError.
    """
    state = full_state(context.model) if hasattr(context.model, "peft_config") else {}
    problem = None
    if ranks.is_main_process():
        try:
            _rehearse(context, folder, state)
        except Exception as error:
            if disk_is_full(error):
                raise
            problem = _describe(error)
        shutil.rmtree(folder, ignore_errors=True)
    if problem := collectives.broadcast(problem):
        raise UserError(
            f"what would be trained cannot be saved: {problem.removesuffix('.')}; nothing was trained."
        )


def _rehearse(context: TrainContext, folder: Path, state: dict[str, Tensor]) -> None:
    model, spec = context.model, context.spec
    left_out = set_generation_config(model, context.tokenizer)
    if left_out:
        context.notify(
            f"generation_config.json of the base: {', '.join(left_out)} left out of the saved model; "
            "transformers ignores it there, and refuses to write it"
        )
    with torch.random.fork_rng():
        write_weights(model, state, folder)
        context.tokenizer.save_pretrained(folder)
        if state:
            verify.check_files(folder, saved_state(model, state).items())
            verify.check_adapter_names(model, folder)
        elif spec.parallel.sharding is not Sharding.zero3 or ranks.world_size() == 1:
            verify.check_full_names(model, folder, saved_state(model, meta_state(model)))


def _is_renamed(model: PreTrainedModel) -> bool:
    """Whether the files of full weights have other names than memory."""
    on_meta = meta_state(model)
    return saved_state(model, on_meta).keys() != on_meta.keys()


def _describe(error: Exception) -> str:
    """Why, in one line."""
    if isinstance(error, UserError):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:MAX_REASON]}"


def _write_bare_weights(folder: Path, state: dict[str, Tensor]) -> None:
    """The weights alone, where a library did not come so far as to write them."""
    if any(folder.glob("*.safetensors")):
        return
    folder.mkdir(parents=True, exist_ok=True)
    distinct = {tensor.data_ptr(): (name, tensor) for name, tensor in reversed(state.items())}
    save_file(
        {name: tensor.contiguous() for name, tensor in distinct.values()}, folder / "weights.safetensors"
    )


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
