"""What a trainer writes into a checkpoint and reads back, whole however its weights are spread over processes.

Weights and the optimizer's memory by parameter name, in safetensors; everything else that a step depends on in JSON; random states in
torch's own format, read as data and never as code. transformers' Trainer decides when.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..distributed import collectives, ranks
from ..distributed.full_state import iter_full_state, trainable_names
from . import optimizer_state


def save_weights(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """safetensors and config of a model, or of its adapter. Every process together; the first one writes, and has the state.

    Raises RunError where a weight is not finite.
    """
    adapter = hasattr(model, "peft_config")
    trained = trainable_names(model) if adapter else set()
    state = {}
    for name, tensor in iter_full_state(model, select=lambda name: not adapter or name in trained):
        optimizer_state.require_finite(name, tensor)
        if ranks.is_main_process():
            state[name] = tensor
    if ranks.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(
            folder, state_dict=state, **({"save_embedding_layers": False} if adapter else {})
        )
    collectives.barrier()
    return state


def load_weights(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """What `save_weights` wrote, by the model's own names."""
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*model*.safetensors")):
        found |= load_file(file)
    if hasattr(model, "peft_config"):
        names = trainable_names(model)
        short = {name.replace(".default", "").replace(".modules_to_save", ""): name for name in names}
        found = {short.get(name, name): tensor for name, tensor in found.items()}
    return found
