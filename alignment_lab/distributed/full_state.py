"""A sharded model as one process would have it: its full tensors, one at a time, and its parameter count; and
whether it is one.

Knows how FSDP2 and ZeRO-3 shard a tensor. Refuses to know what the tensors mean and where they are written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


def iter_full_state(
    model: Module,
    *,
    select: Callable[[str], bool] = lambda name: True,
    rename: Callable[[str], str] = str,
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the model's full state dict, sorted by name, one tensor at a time, on the CPU.

    `select` chooses by the model's own names, `rename` maps them to others. Every process must iterate over
    all of it together: a sharded tensor is gathered from all.
    """
    state = model.state_dict(keep_vars=True)
    tensors = {rename(name): tensor for name, tensor in state.items() if select(name)}
    tied = {key for key, uses in Counter(map(id, tensors.values())).items() if uses > 1}
    gathered_tied: dict[int, Tensor] = {}
    for name in sorted(tensors):
        key = id(tensors[name])
        full = gathered_tied[key] if key in gathered_tied else _gather(tensors[name])
        if key in tied:
            gathered_tied[key] = full  # one tensor under two names stays one
        yield name, full


def is_sharded(model: Module) -> bool:
    """Whether ZeRO-3 or FSDP2 holds the weights in parts, so that a forward call needs every process."""
    return any(hasattr(weight, "full_tensor") or hasattr(weight, "ds_id") for weight in model.parameters())


def trainable_names(model: Module) -> set[str]:
    """Names of the trainable parameters in the model's state dict."""
    return {name for name, weight in model.named_parameters(remove_duplicate=False) if weight.requires_grad}


def _gather(tensor: Any) -> Tensor:
    if hasattr(tensor, "full_tensor"):  # FSDP2's DTensor
        return tensor.detach().full_tensor().cpu()
    if hasattr(tensor, "ds_id"):  # a parameter that ZeRO-3 partitioned
        from deepspeed import zero

        with zero.GatheredParameters([tensor]):
            return tensor.detach().cpu().clone()
    return tensor.detach().cpu()


def count_parameters(model: Module, *, trainable_only: bool = False) -> int:
    """How many parameters the whole model has, however it is sharded."""
    return sum(
        getattr(weight, "ds_numel", None) or weight.numel()
        for weight in model.parameters()
        if weight.requires_grad or not trainable_only
    )
