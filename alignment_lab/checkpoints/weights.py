"""The weights of a checkpoint and of a final model, whole however they are sharded, in safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

from ..distributed import collectives, ranks
from ..distributed.full_state import iter_full_state, trainable_names
from ..runtime.library_internals import to_saved_names
from .optimizer_state import require_finite

if TYPE_CHECKING:
    from torch import Tensor


def full_state(model: Any) -> dict[str, Tensor]:
    """What a save is about: all weights, or those of an adapter, whole, on the CPU, by the model's own names.

    Every process together; the main one has the state, the others an empty one. Raises RunError where a
    weight is not finite.
    """
    has_adapter = hasattr(model, "peft_config")
    trained = trainable_names(model) if has_adapter else set()
    state = {}
    for name, tensor in iter_full_state(model, select=lambda name: not has_adapter or name in trained):
        require_finite(name, tensor)
        if ranks.is_main_process():
            state[name] = tensor
    return state


def write_weights(model: Any, state: dict[str, Tensor], folder: Path, *, own_names: bool = False) -> None:
    """Write safetensors and configs of a model, or of its adapter, for the main process alone.

    The names are those of the Hub, which plain transformers and other programs expect; with `own_names` those
    of the model in memory, where they differ: a run goes on from them without a second model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "peft_config"):
        model.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
    else:
        model.save_pretrained(folder, state_dict=dict(state), save_original_format=not own_names)


def save_checkpoint_weights(model: Any, folder: Path) -> None:
    """Write a checkpoint's weights, for `load_weights`. Every process together. Raises as `full_state`."""
    state = full_state(model)
    if ranks.is_main_process():
        write_weights(model, state, folder, own_names=True)
    collectives.barrier()


def saved_state(model: Any, state: dict[str, Any]) -> dict[str, Any]:
    """`state` under the names, and in the shapes, that a final model's files have: peft's, or the Hub's."""
    if not hasattr(model, "peft_config"):
        return to_saved_names(model, state)
    from peft import get_peft_model_state_dict

    return dict(get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False))


def meta_state(model: Any) -> dict[str, Tensor]:
    """The names, whole shapes and dtypes of a model's state dict, without a weight."""
    import torch

    return {
        name: torch.empty(tuple(getattr(tensor, "ds_shape", tensor.shape)), dtype=tensor.dtype, device="meta")
        for name, tensor in model.state_dict(keep_vars=True).items()
    }


def load_weights(model: Any, folder: Path) -> dict[str, Tensor]:
    """What `save_checkpoint_weights` wrote, by the model's own names; tied ones under each of them."""
    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*model*.safetensors")):
        weights |= load_file(file)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if hasattr(model, "peft_config"):  # peft leaves the adapter's name out of the file
        trained = {name: name for name, weight in parameters.items() if weight.requires_grad}
        own_names = saved_state(model, trained)
        weights = {own_names.get(name, name): tensor for name, tensor in weights.items()}
    by_weight = {id(parameters[name]): tensor for name, tensor in weights.items() if name in parameters}
    tied = {name: by_weight[id(weight)] for name, weight in parameters.items() if id(weight) in by_weight}
    return weights | tied
