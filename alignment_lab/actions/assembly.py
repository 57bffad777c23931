"""An experiment's parts, loaded and put together: what a run trains, and what is computed for a sweep's cells
before they start.

Every process goes through all of it. Refuses to know what is measured, saved or reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from .. import data, estimate
from ..config import Experiment, Quantization, Sharding
from ..distributed import ranks
from ..distributed.full_state import count_parameters
from ..methods import objective_class
from ..models.device import device_and_dtype, free_memory
from ..models.loading import load_policy
from ..runtime.files import read_json
from ..training import Callback, Hooks, TrainContext, Trainer
from ..training.backend import create_accelerator

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from transformers import PreTrainedModel

    from ..checkpoints.manager import CheckpointManager
    from ..runtime.signals import StopRequest
    from .tokenized import TokenizedData

LoadPolicy = Callable[[Experiment, Path, "torch.device", "torch.dtype"], Any]


def build_trainer(
    spec: Experiment,
    tokens: TokenizedData,
    console: Console,
    *,
    load: LoadPolicy = load_policy,
    hooks: Hooks | None = None,
    callbacks: Callable[[TrainContext], Sequence[Callback]] = lambda context: (),
    checkpoints: CheckpointManager | None = None,
    stop: StopRequest | None = None,
) -> Trainer:
    """The trainer of this experiment; `callbacks` are made from what was loaded."""
    device, dtype = device_and_dtype(spec)
    # before the model: it shards what is loaded under ZeRO-3
    accelerator = create_accelerator(spec, device, dtype)
    policy = load(spec, tokens.model_folder, device, dtype)
    if hasattr(policy, "peft_config"):
        console.print(_describe_adapter(spec, policy), highlight=False, soft_wrap=True)
    context = build_context(spec, policy, accelerator, device, dtype, tokens, console)
    objective = objective_class(spec.method)(context)
    return Trainer(
        context,
        objective,
        hooks=hooks,
        callbacks=callbacks(context),
        checkpoints=checkpoints,
        stop=stop,
    )


def build_context(
    spec: Experiment,
    policy: PreTrainedModel,
    accelerator: Accelerator,
    device: torch.device,
    dtype: torch.dtype,
    tokens: TokenizedData,
    console: Console,
) -> TrainContext:
    """What the trainer and the method's objective are built from; the layout is known once the model can be
    called.
    """
    passes = estimate.choose_micro_batch(
        spec,
        policy.config.get_text_config(),
        dtype_bytes=dtype.itemsize,
        free_bytes=free_memory(device),
        longest_row=max(map(data.longest_sequence, (tokens.train, tokens.heldout, tokens.heldout_pairs))),
        cuda=device.type == "cuda",
        processes=ranks.world_size(),
    )
    context = TrainContext(
        spec,
        policy,
        tokens.tokenizer,
        tokens.train,
        tokens.heldout,
        tokens.available,
        accelerator,
        device,
        dtype,
        max_tokens=passes.tokens,
        gradient_checkpointing=passes.checkpointing,
        console=console,
        heldout_pairs=tokens.heldout_pairs,
    )
    is_sharded = spec.parallel.sharding in (Sharding.zero3, Sharding.fsdp) and ranks.world_size() > 1
    if not is_sharded:
        context.choose_layout()
    return context


def _describe_adapter(spec: Experiment, policy: Any) -> str:
    """What is trained of an adapted model, and what its reference is."""
    (settings,) = policy.peft_config.values()
    parallel, start = spec.parallel, spec.model.init_adapter
    quantized = parallel.quantization is not Quantization.none
    base = f"the base in {parallel.quantization.name}" if quantized else "the base"
    trained = count_parameters(policy, trainable_only=True)
    kind = f"{parallel.adapter.name}, rank {settings.r}, alpha {settings.lora_alpha}, {trained:,} parameters"
    continued = f"it goes on from {start}, and is the reference as it lies there{_describe_dropout(start)}"
    return f"adapter: {kind} on {base}; {continued if start else f'the reference is {base}'}"


def _describe_dropout(init_adapter: str | None) -> str:
    """That an adapter which was trained with dropout goes on without."""
    config = read_json(Path(init_adapter, "adapter_config.json").expanduser()) if init_adapter else {}
    rate = config.get("lora_dropout")
    return f"; its lora_dropout of {rate} is off" if rate else ""
