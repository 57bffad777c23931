"""Three dials (sharding, adapter, quantization) turned into what DeepSpeed, FSDP2, peft and bitsandbytes are given.

Everything is derived from the experiment, so that no number is stated twice. Also the one way to see a sharded model whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def iter_full_state(
    model: Any, *, wanted: Callable[[str], bool] = lambda name: True, called: Callable[[str], str] = str
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the state of a model, sharded or not, as one process would have it, by name, one after the other, on processors.

    `wanted` chooses by the model's own names, `called` gives others. Every process must go through all of them together: a sharded
    tensor is gathered from all.
    """
    tensors = {
        called(name): tensor for name, tensor in model.state_dict(keep_vars=True).items() if wanted(name)
    }
    tied = {key for key, uses in Counter(map(id, tensors.values())).items() if uses > 1}
    known: dict[int, Tensor] = {}
    for name in sorted(tensors):
        key = id(tensors[name])
        found = known[key] if key in known else _gathered(tensors[name])
        if key in tied:
            known[key] = found  # one tensor under two names stays one
        yield name, found


def trainable_names(model: Any) -> set[str]:
    """Names in a model's state of what is trained."""
    return {name for name, weight in model.named_parameters(remove_duplicate=False) if weight.requires_grad}


def _gathered(tensor: Any) -> Tensor:
    if hasattr(tensor, "full_tensor"):  # FSDP2's DTensor
        return tensor.detach().full_tensor().cpu()
    if hasattr(tensor, "ds_id"):  # a parameter that ZeRO-3 partitioned
        from deepspeed import zero

        with zero.GatheredParameters([tensor]):
            return tensor.detach().cpu().clone()
    return tensor.detach().cpu()


def count_parameters(model: Any, *, trainable_only: bool = False) -> int:
    """Parameters, whole ones, however they are sharded."""
    sizes = (
        getattr(weight, "ds_numel", None) or weight.numel()
        for weight in model.parameters()
        if weight.requires_grad or not trainable_only
    )
    return sum(sizes)
