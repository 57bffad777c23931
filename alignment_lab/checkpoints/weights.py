"""The weights of a checkpoint and of a final model, whole however they are sharded, in safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

from ..distributed import collectives, ranks
from ..distributed.full_state import iter_full_state, trainable_names
from .optimizer_state import require_finite

if TYPE_CHECKING:
    from torch import Tensor


def save_weights(model: Any, folder: Path) -> dict[str, Tensor]:
    """Write safetensors and config of a model, or of its adapter. Every process together; the main one has
    the state.

    Raises RunError where a weight is not finite.
    """
    has_adapter = hasattr(model, "peft_config")
    trained = trainable_names(model) if has_adapter else set()
    state = {}
    for name, tensor in iter_full_state(model, select=lambda name: not has_adapter or name in trained):
        require_finite(name, tensor)
        if ranks.is_main_process():
            state[name] = tensor
    if ranks.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        options = {"save_embedding_layers": False} if has_adapter else {}
        model.save_pretrained(folder, state_dict=state, **options)
    collectives.barrier()
    return state


def load_weights(model: Any, folder: Path) -> dict[str, Tensor]:
    """What `save_weights` wrote, by the model's own names."""
    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*model*.safetensors")):
        weights |= load_file(file)
    if not hasattr(model, "peft_config"):
        return weights
    # peft leaves the adapter's name out of the file
    names = {
        name.replace(".default", "").replace(".modules_to_save", ""): name for name in trainable_names(model)
    }
    return {names.get(name, name): tensor for name, tensor in weights.items()}
