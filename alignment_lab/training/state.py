"""What a trainer writes into a checkpoint and reads back, whole however its weights are spread over processes.

transformers' Trainer does most of it. Ours: weights gathered tensor by tensor, FSDP2's optimizer gathered too, and nothing loaded before
the untouched model was asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from transformers import Trainer
from transformers.integrations.deepspeed import deepspeed_load_checkpoint

from .. import cluster, parallel
from ..spec import Sharding

OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"  # transformers' names
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, broadcast_from_rank0=True, strict=False)


class StatefulTrainer(Trainer):
    """A Trainer whose checkpoints are whole. Every process saves and loads together."""

    begun = False  # whether the untouched model was asked: only then may a checkpoint be loaded
    sharding = Sharding.none

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Weights (of an adapter, the adapter) and tokenizer, as plain transformers or peft loads them."""
        folder = Path(output_dir or str(self.args.output_dir))
        self.rest()
        save_weights(self.model, folder)
        if cluster.is_first() and self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def rest(self) -> None:
        """Cut again what was gathered: ZeRO-3 fetches ahead for a pass that may not come, FSDP2's outermost unit stays whole."""
        if self.is_deepspeed_enabled and self.begun:
            self.deepspeed.empty_partition_cache()
        if self.sharding is Sharding.fsdp:
            parallel.reshard(self.model)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.sharding is not Sharding.fsdp:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_optimizer_state_dict(self.model, self.optimizer.optimizer, options=options)
        if cluster.is_first():
            torch.save(state, Path(output_dir, OPTIMIZER))
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Not before the untouched model was asked: transformers would load a whole model's weights before it is wrapped."""
        if self.begun:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _restore(self, checkpoint: str) -> None:
        """Weights, optimizer and schedule of a checkpoint, into the wrapped model."""
        if self.sharding is Sharding.fsdp:
            self._restore_shards(Path(checkpoint))
            return
        if self.is_deepspeed_enabled:
            deepspeed_load_checkpoint(self.model_wrapped, checkpoint, load_module_strict=not hasattr(self.model, "peft_config"))
        else:
            self._load_from_checkpoint(checkpoint)
        self._load_optimizer_and_scheduler(checkpoint)
        self._load_scaler(checkpoint)

    def _restore_shards(self, checkpoint: Path) -> None:
        self.rest()
        first = cluster.is_first()
        weights: dict[str, Any] = load_weights(self.model, checkpoint) if first else {}
        set_model_state_dict(self.model, weights, options=WHOLE)
        state = torch.load(checkpoint / OPTIMIZER, map_location="cpu", weights_only=True) if first else {}
        set_optimizer_state_dict(self.model, self.optimizer.optimizer, state, options=WHOLE)
        self.lr_scheduler.load_state_dict(torch.load(checkpoint / SCHEDULER, weights_only=True))


def save_weights(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """safetensors and config of a model, or of its adapter. Every process together; the first one writes, and has the state."""
    adapter = hasattr(model, "peft_config")
    trained = parallel.trained(model) if adapter else set()
    state = {}
    for name, tensor in parallel.whole(model, wanted=lambda name: not adapter or name in trained):
        if cluster.is_first():
            state[name] = tensor
    if cluster.is_first():
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder, state_dict=state, **({"save_embedding_layers": False} if adapter else {}))
    cluster.barrier()
    return state


def load_weights(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """What `save_weights` wrote, by the model's own names."""
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    if hasattr(model, "peft_config"):
        names = parallel.trained(model)
        short = {name.replace(".default", "").replace(".modules_to_save", ""): name for name in names}
        found = {short.get(name, name): tensor for name, tensor in found.items()}
    return found
